"""`python -m bench.device`: what an accelerator reaches, beside what the plan bounds it by.

Each measurement is a part. One process runs parts, and writes rows of figures; another asks for them one by one, keeps
the time, and outlives kernels that abort or hang.
"""
