"""Small faults, one for each room and mechanism, and the tests that must find each: `python -m tests.mutations [NAME]`.

Each is put into a copy of the project by itself. A fault that no test finds shows a test that is missing. A text that
is no longer there, or stands there twice, is an error (`tests/test_rules.py`): who rewrites it writes another fault.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parent.parent
COPIED = (
    "mot",
    "configs",
    "launch",
    "scaling",
    "tests",
    "docs",
    "bench",
    "pyproject.toml",
    "constraints.txt",
    "README.md",
)


class Mutation(NamedTuple):
    name: str
    file: str
    old: str
    new: str
    tests: str  # pytest's arguments: files or ids, with spaces between


MUTATIONS = (
    # Tokenizers that others made.
    Mutation(
        "networks: what was tokenised goes to another document",
        "mot/prepare/encode.py",
        "for (document, i), data in zip(places, made, strict=True):",
        "for (document, i), data in zip(places, made[::-1], strict=True):",
        "tests/prepare/test_networks.py",
    ),
    Mutation(
        "networks: batches know no bound",
        "mot/prepare/encode.py",
        "if not 0 < size < AT_ONCE:",
        "if not size:",
        "tests/prepare/test_networks.py",
    ),
    Mutation(
        "networks: another network is not noticed",
        "mot/tokenizers/networked.py",
        "if network.digest != self.known.digest:",
        "if False:",
        "tests/prepare/test_networks.py tests/generate/test_networks.py",
    ),
    Mutation(
        "networks: layers come back as if frames were layers",
        "mot/tokenizers/networked.py",
        ".reshape(-1, layers).T.reshape(-1)",
        ".reshape(layers, -1).T.reshape(-1)",
        "tests/prepare/test_networks.py",
    ),
    Mutation(
        "pieces: a text that spells a control piece is one",
        "mot/tokenizers/pieces.py",
        "if model.kind == UNIGRAM and (apart := _apart(model)):",
        "if False and (apart := _apart(model)):",
        "tests/tokenizers/test_pieces.py",
    ),
    # Masked ids.
    Mutation(
        "masked: a hidden id's loss is not divided by its ratio",
        "mot/objectives/masked.py",
        "1 / jnp.where(learns_BT, tokens.noise, 1)",
        "jnp.where(learns_BT, 1.0, 1)",
        "tests/objectives/test_masked.py",
    ),
    Mutation(
        "masked: a hidden id is shown",
        "mot/objectives/masked.py",
        "token=jnp.where(hides_BC, mask_id, tokens.token)",
        "token=tokens.token",
        "tests/objectives/test_masked.py",
    ),
    Mutation(
        "masked: shifted, a token learns of itself",
        "mot/objectives/masked.py",
        "    if masking.shift:",
        "    if False:",
        "tests/objectives/test_masked.py",
    ),
    Mutation(
        "masked: which ids are hidden follows from their place in the row",
        "mot/objectives/masked.py",
        "batches.place_in_unit(tokens).reshape(-1)",
        "tokens.position.reshape(-1)",
        "tests/objectives/test_masked.py",
    ),
    Mutation(
        "roles: a masked picture that is read is hidden, too",
        "mot/data/roles.py",
        "most = stream.masking.before_text if stream.masks",
        "most = 1.0 if stream.masks",
        "tests/objectives/test_masked.py",
    ),
    Mutation(
        "unmasking: the ids that the model is least sure of stay",
        "mot/generate/unmasking.py",
        "jnp.where(hidden_BT, -sure_BT, jnp.inf)",
        "jnp.where(hidden_BT, sure_BT, jnp.inf)",
        "tests/generate/test_unmasking.py",
    ),
    # The model.
    Mutation(
        "a cross-attention shows the picture of another document",
        "mot/model/crossing.py",
        "seen_BC = jnp.where((segment_BC == t.segment) & (t.segment != 0), unit_BC, 0)",
        "seen_BC = jnp.where(t.segment != 0, unit_BC, 0)",
        "tests/model/test_crossing.py",
    ),
    Mutation(
        "a resampler does not tell the vectors of a token apart",
        "mot/model/entries.py",
        "each_BS = (R * place_BC[..., None] + jnp.arange(R)[None, None])",
        "each_BS = (R * place_BC[..., None] + 0 * jnp.arange(R)[None, None])",
        "tests/model/test_entries.py",
    ),
    Mutation(
        "dropout follows the place in the row, not in the document",
        "mot/model/dropout.py",
        "t.position - jnp.take_along_axis(first_BS, t.segment, axis=1)",
        "t.position",
        "tests/model/test_dropout.py",
    ),
    Mutation(
        "visibility: a private copy is seen by what follows",
        "mot/batches.py",
        "causal = (k.position <= q.position) & ~k.private",
        "causal = k.position <= q.position",
        "tests/model/test_attention.py",
    ),
    Mutation(
        "visibility: padding sees padding",
        "mot/batches.py",
        "same_document = (q.segment == k.segment) & (q.segment != 0)",
        "same_document = q.segment == k.segment",
        "tests/model/test_attention.py",
    ),
    Mutation(
        "positions: text goes on after a unit's first frame, not its last",
        "mot/data/positions.py",
        "np.maximum.accumulate(inside[:, counted].max(1)) + 1",
        "np.maximum.accumulate(inside[:, counted].min(1)) + 1",
        "tests/data/test_positions.py",
    ),
    Mutation(
        "rope: sections are dealt out in turn where they are not interleaved",
        "mot/model/ops.py",
        "if not interleaved:",
        "if interleaved:",
        "tests/model/test_ops.py",
    ),
    Mutation(
        "native pictures: rows and columns change places",
        "mot/tokenizers/image.py",
        "rows, columns = (max(round(x * smaller / patch), 1) for x in (height, width))",
        "columns, rows = (max(round(x * smaller / patch), 1) for x in (height, width))",
        "tests/prepare/test_sizes.py",
    ),
    Mutation(
        "rope: the gradient is turned on, not back",
        "mot/model/ops.py",
        "direction=-1), None),",
        "direction=1), None),",
        "tests/model/test_ops.py",
    ),
    Mutation(
        "norms: the mean is not taken off",
        "mot/model/ops.py",
        "    x = x - jnp.mean(x, axis=-1, keepdims=True)\n",
        "",
        "tests/model/test_ops.py",
    ),
    Mutation(
        "router: a capacity is rounded up",
        "mot/model/router.py",
        "np.floor(factor * spec.active * np.arange(tokens + 1) / spec.experts + 1e-9)",
        "np.ceil(factor * spec.active * np.arange(tokens + 1) / spec.experts - 1e-9)",
        "tests/model/test_router.py::test_capacity_is_the_stated_floor",
    ),
    Mutation(
        "router: groups are chosen by their best expert alone",
        "mot/model/routers/token.py",
        "BEST = 2 ",
        "BEST = 1 ",
        "tests/model/test_router.py::test_routing_equals_a_loop_over_tokens",
    ),
    Mutation(
        "router: a pooled balance loss is of each layer",
        "mot/objectives/losses.py",
        "jnp.maximum(own, 1) * jnp.maximum(rows, 1)",
        "jnp.maximum(own, 1) * jnp.maximum(rows, 1) / 3",
        "tests/model/test_experts.py::test_a_loss_beside_a_bias_is_that_of_rows_and_a_pooled_one_is_of_all_layers",
    ),
    Mutation(
        "router: weights are not scaled",
        "mot/model/routers/token.py",
        "    if spec.weight_scale != 1:\n",
        "    if False:\n",
        "tests/model/test_router.py::test_routing_equals_a_loop_over_tokens",
    ),
    Mutation(
        "rope: short wavelengths are stretched and long ones are not",
        "mot/model/ops.py",
        "kept + (1 - kept) / scaling.factor",
        "1 - kept + kept / scaling.factor",
        "tests/model/test_ops.py",
    ),
    Mutation(
        "measures: a part that fails ends all others",
        "bench/device/worker.py",
        "        except Exception as error:  # of this part alone\n",
        "        except ZeroDivisionError as error:\n",
        "tests/bench/test_device.py::test_a_process_that_ends_or_hangs_is_told_and_another_begins",
    ),
    Mutation(
        "measures: what there is no time for begins all the same",
        "bench/device/__main__.py",
        "if deadline - start < took.get(",
        "if deadline - start < 0 * took.get(",
        "tests/bench/test_device.py::test_what_there_is_no_time_for_is_left_out_and_told",
    ),
    Mutation(
        "plan: room of a GPU's matmul counts as written",
        "mot/plan/hlo.py",
        "    if _is_gemm(instruction):\n        dtype",
        "    if False:\n        dtype",
        "tests/scaling/test_hlo.py::test_a_gpus_matmuls_are_counted",
    ),
    Mutation(
        "mixture: documents whose numbers are alike keep the order of places",
        "mot/data/mixture.py",
        "    order[unsure] = places[np.lexsort((places, values[places]))]\n",
        "",
        "tests/data/test_mixture.py::test_numbers_are_sorted_as_numpy_sorts_them",
    ),
    Mutation(
        "attention: the way back forgets the cap",
        "mot/model/flash.py",
        "            if cap:\n",
        "            if False:\n",
        "tests/model/test_attention.py::test_backends_equal_the_oracle_forward_and_gradient",
    ),
    Mutation(
        "cross-entropy: the way back forgets the cap",
        "mot/objectives/cross_entropy.py",
        "        if cap:\n",
        "        if False:\n",
        "tests/objectives/test_losses.py::test_chunked_loss_equals_unchunked_also_with_a_tail",
    ),
    Mutation(
        "splash: every row visits the first row's keys",
        "mot/model/kernels.py",
        "(b * U + u, b * W + w)",
        "(b * U + u, w)",
        "tests/model/test_kernels.py::test_splash_visits_each_row_by_itself_and_leaves_none_of_its_blocks_out",
    ),
    Mutation(
        "norms: what follows a branch has the scale of what goes before it",
        "mot/model/layers.py",
        """f"{name}_post", context""",
        "name, context",
        "tests/model/test_transformer.py::test_grouped_streams_equal_a_per_token_masked_select",
    ),
    Mutation(
        "import: a null window is the class's own",
        "mot/interop/families/text.py",
        """(dict(family.usual) | given).get("sliding_window")""",
        """(given.get("sliding_window") or family.usual.get("sliding_window"))""",
        "tests/interop/test_families.py",
    ),
    Mutation(
        "router: of equal scores later tokens come first",
        "mot/model/router.py",
        "    position_BC1 = position_BC[..., None].astype(jnp.uint32)\n",
        "    position_BC1 = (1 << 20) - position_BC[..., None].astype(jnp.uint32)\n",
        "tests/model/test_router.py::test_routing_equals_a_loop_over_tokens",
    ),
    Mutation(
        "router: the balance loss counts padding",
        "mot/model/router.py",
        "    p_BE = jnp.where(real_BC[..., None], p_BCE, 0).sum(1)",
        "    p_BE = p_BCE.sum(1)",
        "tests/model/test_router.py::test_the_balance_loss_is_one_where_all_is_even_and_more_where_it_is_not",
    ),
    Mutation(
        "towers: keys behind a wall have a gradient",
        "mot/model/joint.py",
        "lax.stop_gradient(x_BCKH) if stopped else x_BCKH",
        "x_BCKH",
        "tests/objectives/test_continuous.py::test_walls_stop_gradients_exactly_and_change_nothing_else",
    ),
    Mutation(
        "layers: what is added is not normalised in a post-norm block",
        "mot/model/layers.py",
        'if context.config.model.norm == "post" else ys',
        'if context.config.model.norm == "both" else ys',
        "tests/model/test_transformer.py::test_grouped_streams_equal_a_per_token_masked_select[mot-choices2]",
    ),
    Mutation(
        "embedding: what is clean is conditioned on its noise level",
        "mot/model/embed.py",
        "return y_RY if d.time_of_clean else jnp.where(t_R1 > 0, y_RY, 0)",
        "return y_RY",
        "tests/objectives/test_continuous.py::test_grouped_streams_equal_the_per_token_oracle[mot-choices0]",
    ),
    Mutation(
        "FLOPs: a query pays for its score alone",
        "mot/model/flops.py",
        "return 4 * m.layers * m.heads * m.head_size",
        "return 2 * m.layers * m.heads * m.head_size",
        "tests/model/test_flops.py::test_counted_flops_equal_the_compilers",
    ),
    Mutation(
        "FLOPs: of E experts all are active",
        "mot/model/flops.py",
        "share = experts.active / experts.experts",
        "share = 1",
        "tests/model/test_params.py tests/model/test_experts.py::test_total_variants_have_as_many_parameters_as_mot",
    ),
    Mutation(
        "sharding: the vocabulary's parts are joined without their sum",
        "mot/model/embed.py",
        "x_RD = lax.psum(jnp.where(here_R[:, None], x_RD, 0), of_vocab) if of_vocab else x_RD",
        "x_RD = jnp.where(here_R[:, None], x_RD, 0) if of_vocab else x_RD",
        "tests/test_sharding.py::test_every_mesh_gives_one_devices_gradients_leaf_by_leaf[ids-mot-meshes0]",
    ),
    Mutation(
        "context: a row's parts are joined in the order of rows",
        "mot/sharding.py",
        "x = constrain(x, (ROWS,), rules).reshape(c, B, C, *x.shape[2:])",
        "x = constrain(x, (ROWS,), rules).reshape(B, c, C, *x.shape[2:]).swapaxes(0, 1)",
        "tests/test_sharding.py::test_every_mesh_gives_one_devices_gradients_leaf_by_leaf[ids-moe_ec4-meshes2]",
    ),
    # Steps, averages, several runs.
    Mutation(
        "accumulation: the last microbatch alone counts",
        "mot/train/step.py",
        "return jax.tree.map(jnp.add, total, f(microbatch)), None",
        "return f(microbatch), None",
        "tests/train/test_loop.py::test_accumulation_over_microbatches_equals_the_whole_batch",
    ),
    Mutation(
        "guard: gradients that are not finite are applied",
        "mot/train/step.py",
        "ok = jnp.isfinite(optax.tree.norm(grads)) & jnp.isfinite(loss)",
        "ok = jnp.isfinite(loss) | True",
        "tests/train/test_loop.py::test_a_step_that_is_not_finite_is_skipped_to_the_bit",
    ),
    Mutation(
        "guard: a gradient far above the others' median is applied",
        "mot/train/step.py",
        'ok &= grad_norm <= measured["grad_norm_limit"]',
        "pass",
        "tests/train/test_guard.py::test_a_gradient_above_the_limit_is_skipped_to_the_bit_and_does_not_move_it",
    ),
    Mutation(
        "replay: the step itself is made without those before it",
        "mot/train/replay.py",
        "for n in range(begun, step):",
        "for n in range(step - 1, step):",
        "tests/train/test_replay.py::test_a_step_has_the_bits_that_it_had",
    ),
    Mutation(
        "average: new weights count as old ones should",
        "mot/train/step.py",
        "decay * mean + (1 - decay) * weight",
        "(1 - decay) * mean + decay * weight",
        "tests/train/test_loop.py::test_the_average_moves_towards_new_weights",
    ),
    Mutation(
        "ensemble: every run has the first run's decay and loss weights",
        "mot/train/ensemble.py",
        "        if varies(key)\n",
        '        if varies(key) and "_" not in key\n',
        "tests/train/test_ensemble.py::test_losses_of_ten_steps_equal_those_of_separate_runs",
    ),
    Mutation(
        "ensemble: every run's checkpoint holds the first run",
        "mot/train/ensemble.py",
        "take(trees(state), i)",
        "take(trees(state), 0)",
        "tests/train/test_ensemble.py::test_one_of_them_resumes_alone_and_then_they_differ",
    ),
    Mutation(
        "dispatch: a token has its last expert's row alone",
        "mot/model/dispatch.py",
        "return total_RD + _take(y_ZD, place_R).astype(jnp.float32)",
        "return _take(y_ZD, place_R).astype(jnp.float32)",
        "tests/model/test_router.py",
    ),
    Mutation(
        "towers: streams with FFNs of their own travel merged",
        "mot/model/transformer.py",
        "for maps in every for component in COMPONENTS)",
        'for maps in every for component in ("attn", "norm"))',
        "tests/model/test_transformer.py::test_grouped_streams_equal_a_per_token_masked_select",
    ),
    Mutation(
        "balance: a loss is scaled away from the target",
        "mot/objectives/balance.py",
        'balance["target"] / jnp.where(own_M > 0, own_M, 1)',
        'jnp.where(own_M > 0, own_M, 1) / balance["target"]',
        "tests/objectives/test_balance.py",
    ),
    Mutation(
        "towers by depth: every layer has the towers of the first",
        "mot/model/layers.py",
        "context.config.towers_in(stack)",
        "context.config.towers_in(context.config.stacks[0])",
        "tests/model/test_depth.py",
    ),
    Mutation(
        "renames: a run that lacks a later key is refused",
        "mot/config/renames.py",
        "result.setdefault(name, value)\n    return",
        "pass\n    return",
        "tests/config/test_renames.py",
    ),
    Mutation(
        "preview: a picture is enlarged past its bound",
        "mot/data/preview.py",
        "factor = longest // max(height, width)",
        "factor = longest // min(height, width)",
        "tests/data/test_preview.py",
    ),
    # Objectives.
    Mutation(
        "latent: a hidden part is seen",
        "mot/objectives/latent.py",
        "segment=jnp.where(learns_BC & ~found.context, 0, tokens.segment),",
        "segment=tokens.segment,",
        "tests/objectives/test_latent.py::test_what_is_hidden_is_padding_and_a_unit_weighs_what_it_did",
    ),
    Mutation(
        "latent: an average's states have a gradient",
        "mot/objectives/latent.py",
        "    state_BCD = jax.lax.stop_gradient(state_BCD)\n    state_BCD -=",
        "    state_BCD -=",
        "tests/objectives/test_latent.py::test_loss_and_gradients_equal_the_oracle",
    ),
    Mutation(
        "sigreg: the imaginary part does not count",
        "mot/objectives/latent.py",
        " + jnp.square(odd)",
        "",
        "tests/objectives/test_latent.py::test_loss_and_gradients_equal_the_oracle",
    ),
    Mutation(
        "fast: coefficients lie dimension by dimension",
        "mot/tokenizers/fast.py",
        "wanted = self.coefficients(chunk).ravel()",
        'wanted = self.coefficients(chunk).ravel(order="F")',
        "tests/tokenizers/test_fast.py",
    ),
    Mutation(
        "loss: booked by the token's modality, not its target's",
        "mot/objectives/next_token.py",
        "    m_BT = batches.modality_of_ids(tokens.target, config)\n",
        "    m_BT = batches.modality_of_ids(tokens.token, config)\n",
        "tests/objectives/test_losses.py::test_loss_is_booked_on_the_targets_modality_and_the_documents_source",
    ),
    Mutation(
        "loss: a modality's weight is not divided by its total",
        "mot/objectives/sums.py",
        "return jnp.where(Z_M > 0, lambda_M / jnp.where(Z_M > 0, Z_M, 1), 0)",
        "return jnp.where(Z_M > 0, lambda_M / Z_M.sum(), 0)",
        "tests/objectives/test_losses.py::test_loss_is_booked_on_the_targets_modality_and_the_documents_source",
    ),
    Mutation(
        "noise: not the same wherever a unit is packed",
        "mot/objectives/denoising.py",
        "keys_R = jax.vmap(lambda seed: jax.random.fold_in(key, seed))(tokens.unit_seed.reshape(-1))",
        "keys_R = jax.random.split(key, tokens.unit_seed.size)",
        "tests/objectives/test_continuous.py::test_noise_is_of_a_unit_and_a_step_wherever_it_lies",
    ),
    Mutation(
        "noise schedule: the shift is turned round",
        "mot/objectives/diffusion.py",
        "return shift * t / (1 + (shift - 1) * t)",
        "return t / (shift + (1 - shift) * t)",
        "tests/objectives/test_diffusion.py::test_shift_keeps_the_ends_and_moves_the_middle_towards_noise",
    ),
    Mutation(
        "guidance: from the conditional on",
        "mot/objectives/diffusion.py",
        "return unconditional + scale * (conditional - unconditional)",
        "return conditional + scale * (conditional - unconditional)",
        "tests/objectives/test_diffusion.py::test_guidance",
    ),
    Mutation(
        "routers: the imitators' loss counts in the objective",
        "mot/objectives/losses.py",
        "(imitation - lax.stop_gradient(imitation))",
        "imitation",
        "tests/model/test_experts.py::test_the_losses_of_routers_are_in_the_objective",
    ),
    # The optimiser and training.
    Mutation(
        "schedule: the first step does not move",
        "mot/optim.py",
        "return o.lr * (n + 1) / _at_least_1(o.warmup)",
        "return o.lr * n / _at_least_1(o.warmup)",
        "tests/test_optim.py::test_schedules_pass_through_their_points",
    ),
    Mutation(
        "decay: by the rate's factor of the path",
        "mot/optim.py",
        "return update if _is_zero(decay) else update + decay * weight",
        "return update if _is_zero(decay) else update + decided[path].lr * decay * weight",
        "tests/test_optim.py::test_a_step_equals_adamw_written_out_with_rate_and_decay_by_path",
    ),
    Mutation(
        "transfer: hidden matrices keep their rate",
        "mot/model/params.py",
        "spec = spec._replace(lr=r**-0.5 if by_muon(path, spec, config) else 1 / r)",
        "spec = spec._replace(lr=1.0)",
        "tests/model/test_params.py::test_mup_is_a_table_of_kinds",
    ),
    Mutation(
        "muon: a step of any size",
        "mot/optim.py",
        "return update * RMS * max(sizes) ** 0.5",
        "return update * RMS",
        "tests/test_optim.py::test_muon_orthogonalises_each_matrix_by_itself",
    ),
    Mutation(
        "clipping: not at all",
        "mot/optim.py",
        "return jax.tree.map(lambda g: g * factor, grads)",
        "return grads",
        "tests/test_optim.py::test_a_step_equals_adamw_written_out_with_rate_and_decay_by_path",
    ),
    Mutation(
        "freezing: a frozen router's bias is moved, for all biases are",
        "mot/optim.py",
        "frozen = {path for paths in frozen_by(config).values() for path in paths}",
        "frozen = {p for paths in frozen_by(config).values() for p in paths if not params.is_bias(p)}",
        "tests/train/test_freeze.py::test_a_frozen_routers_bias_does_not_move",
    ),
    Mutation(
        "running means: a stream that is absent pulls its mean to 0",
        "mot/train/step.py",
        "after[name] = jnp.where(weight > 0, moved, mean)",
        "after[name] = moved",
        "tests/objectives/test_continuous.py::test_a_mean_begins_with_the_first_loss_and_stays_where_a_stream_is_absent",
    ),
    Mutation(
        "upcycling: no copy parts from the others",
        "mot/train/upcycle.py",
        "moved = (number >= kept).reshape(-1, *(1,) * (value.ndim - 1))",
        "moved = (number < 0).reshape(-1, *(1,) * (value.ndim - 1))",
        "tests/model/test_experts.py::test_mot_moe_grown_from_mot_copies_each_towers_ffn_and_noise_parts_the_copies",
    ),
    Mutation(
        "resuming: at the step after the newest",
        "mot/runs/writer.py",
        'if row["step"] <= resumed_at]',
        'if row["step"] < resumed_at]',
        "tests/train/test_loop.py::test_rows_after_the_checkpoint_are_written_once",
    ),
    Mutation(
        "trackers: a row that comes again is sent again",
        "mot/runs/trackers.py",
        "if step <= self.sent.get(kind, -1):",
        "if step < self.sent.get(kind, -1):",
        "tests/runs/test_trackers.py::test_a_restart_goes_on_with_the_same_run_and_each_row_goes_once",
    ),
    Mutation(
        "lock: another machine's sign of life is not looked at",
        "mot/runs/lock.py",
        "and silent < DEAD:",
        "and silent < 0:",
        "tests/runs/test_lock.py",
    ),
    Mutation(
        "lock of a bucket: of two that begin at once both hold it",
        "mot/runs/lock.py",
        'if holder.get("token") != me["token"]:\n        raise',
        'if not holder.get("token"):\n        raise',
        "tests/runs/test_lock_of_bucket.py",
    ),
    Mutation(
        "buckets: a row that was merged counts twice",
        "mot/files/writing.py",
        "for line in lines if line not in known)",
        "for line in lines)",
        "tests/files/test_parts.py",
    ),
    Mutation(
        "buckets: a part that failed is lost",
        "mot/files/writing.py",
        "        if self.error is None:\n            self.written += 1\n            del self.waiting[: self.given]",
        "        self.written += 1\n        del self.waiting[: self.given]",
        "tests/files/test_parts.py",
    ),
    Mutation(
        "remote datasets: a copy in use makes room",
        "mot/data/remote.py",
        "fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)",
        "pass",
        "tests/data/test_remote.py",
    ),
    Mutation(
        "watchdog: a step that has moved on counts from the start",
        "mot/train/watchdog.py",
        "        self.what = what\n        self.since = time.monotonic()\n\n    def _watch",
        "        self.since = time.monotonic()\n\n    def _watch",
        "tests/train/test_watchdog.py",
    ),
    Mutation(
        "replicas: a device that differs is not named",
        "mot/train/replicas.py",
        "if not has_most or (found_D2[i] != usual).any()]",
        "if not has_most]",
        "tests/train/test_replicas.py",
    ),
    Mutation(
        "checkpoints: a step that is removed keeps its name",
        "mot/checkpoint/folder.py",
        "            os.rename(target, left)\n            remove(left)",
        "            remove(target)",
        "tests/checkpoint/test_saving.py",
    ),
    Mutation(
        "saves: a run that diverges among others is never saved",
        "mot/train/saves.py",
        "if i not in self.ended:",
        "if not log.diverged:",
        "tests/train/test_ensemble.py::test_one_that_diverges_stops_by_itself",
    ),
    Mutation(
        "agreement: one process's signal is no other's",
        "mot/train/agreement.py",
        "wishes_DW.max(0)",
        "wishes_DW.min(0)",
        "tests/train/test_processes.py::test_one_that_is_asked_stops_all_at_one_step_and_one_that_dies_is_told_of",
    ),
    Mutation(
        "signals: compiling is not interrupted",
        "mot/train/signals.py",
        "not self.left.wait(PATIENCE) and not self.unsaved",
        "not self.left.wait(PATIENCE) and self.unsaved",
        "tests/train/test_signals.py::test_a_signal_while_compiling_is_heard_at_once",
    ),
    Mutation(
        "data workers: streams are sorted by name",
        "mot/data/pipeline.py",
        "{name: packed.batch[name] for name in names}",
        "{name: packed.batch[name] for name in sorted(names)}",
        "tests/data/test_sources.py::test_workers_make_the_same_batches",
    ),
    Mutation(
        "head: devices with the same rows multiply its gradient",
        "mot/objectives/cross_entropy.py",
        "dw_DV / lax.psum(1, same_rows) if same_rows else dw_DV",
        "dw_DV",
        "tests/objectives/test_losses.py",
    ),
    Mutation(
        "greedy: the likeliest id is of a head in float32",
        "mot/objectives/next_token.py",
        "jnp.argmax(transformer.logits(h_D[None], head_DV, config)[0], -1)",
        "jnp.argmax((h_D @ head_DV).astype(jnp.float32), -1)",
        "tests/objectives/test_losses.py",
    ),
    Mutation(
        "data workers: an error that no other process can make again is sent as it is",
        "mot/data/pipeline.py",
        "if multiprocessing.parent_process() is None or _is_sendable(error):",
        "if True:",
        "tests/data/test_pipeline.py",
    ),
    Mutation(
        "data workers: one is known only where the next batch was waited for",
        "mot/data/pipeline.py",
        "        workers |= {child",
        "            workers |= {child",
        "tests/train/test_workers.py::test_a_worker_that_had_started_at_once_is_known_when_it_dies",
    ),
    Mutation(
        "data workers: they outlive a run that is killed",
        "mot/data/pipeline.py",
        "        parent.join()\n        os._exit(1)",
        "        parent.join()",
        "tests/train/test_workers.py::test_a_killed_runs_folder_is_free_and_its_worker_ends",
    ),
    Mutation(
        "goodput: what is done again is not lost",
        "mot/runs/goodput.py",
        "return max(reached - sum(seconds.values()), 0.0)",
        "return 0.0",
        "tests/runs/test_goodput.py",
    ),
    Mutation(
        "checkpoints: a digest is not compared",
        "mot/checkpoint/manifest.py",
        "if expected[name] != found[name]:",
        "if not found[name]:",
        "tests/checkpoint/test_manifest.py",
    ),
    Mutation(
        "checkpoints: the oldest are kept",
        "mot/checkpoint/saving.py",
        "stay = {*saved[-max(keep.last, 1) :]}",
        "stay = {*saved[: max(keep.last, 1)]}",
        "tests/checkpoint/test_saving.py",
    ),
    Mutation(
        "files: written in place",
        "mot/files/writing.py",
        "        partial.write_bytes(content.encode() if isinstance(content, str) else content)",
        "        file.write_bytes(content.encode() if isinstance(content, str) else content)\n"
        "        partial.write_bytes(file.read_bytes())",
        "tests/launch/test_process.py::test_a_file_is_whole_or_absent_and_the_error_names_it",
    ),
    # Data.
    Mutation(
        "packing: a document's last token has the next one's first as its target",
        "mot/data/packing.py",
        "follows = np.append(segment[1:] == segment[:-1], False)",
        "follows = np.append(segment[1:] >= segment[:-1], False)",
        "tests/data/test_packing.py::test_integers_and_targets_across_streams_are_right",
    ),
    Mutation(
        "packing: a unit's seed depends on the row",
        "mot/data/packing.py",
        'seeds[i] = zlib.crc32(f"{d.source}/{d.doc_id}/{u}".encode())',
        'seeds[i] = zlib.crc32(f"{d.source}/{s}/{u}".encode())',
        "tests/data/test_packing.py::test_unit_seeds_do_not_depend_on_packing",
    ),
    Mutation(
        "packing: two documents' spans have one number",
        "mot/data/packing.py",
        "number + np.repeat(np.cumsum(largest) - largest, sizes)",
        "number",
        "tests/data/test_packing.py::test_integers_and_targets_across_streams_are_right",
    ),
    Mutation(
        "mixture: each epoch is in the same order",
        "mot/data/mixture.py",
        "np.random.SeedSequence([self.seed, source, epoch])",
        "np.random.SeedSequence([self.seed, source])",
        "tests/data/test_mixture.py tests/data/test_pipeline.py",
    ),
    Mutation(
        "mixture: shares of tokens are shares of documents",
        "mot/data/mixture.py",
        "            weights[n] /= mean\n",
        "",
        "tests/data/test_mixture.py",
    ),
    Mutation(
        "held out: some of what is trained on, too",
        "mot/data/embedded.py",
        "texts = [s for s in sections if _held_out(s.encode()) == held_out]",
        "texts = [s for s in sections if not held_out or _held_out(s.encode())]",
        "tests/data/test_pipeline.py",
    ),
    Mutation(
        "records: a document is another shard's",
        "mot/data/records.py",
        'shard = int(np.searchsorted(self.firsts_of_shards, i, side="right")) - 1',
        'shard = max(int(np.searchsorted(self.firsts_of_shards, i, side="left")) - 1, 0)',
        "tests/data/test_records.py::test_a_dataset_is_read_at_random_and_travels_to_another_process",
    ),
    Mutation(
        "manifest: a file's digest is not compared",
        "mot/data/manifest.py",
        "            if found != digest:\n",
        "            if not found:\n",
        "tests/data/test_records.py::test_damaged_missing_and_foreign_files_are_named",
    ),
    Mutation(
        "sources: a remote dataset is copied anew each time",
        "mot/data/remote.py",
        "return file.is_file() and file.stat().st_size == size",
        "return False",
        "tests/data/test_sources.py::test_a_remote_dataset_is_copied_once",
    ),
    # Tokenizers.
    Mutation(
        "codebook: of equally near codes the last",
        "mot/tokenizers/codebook.py",
        "ids_R[i : i + step] = distance_RK.argmin(1)",
        "ids_R[i : i + step] = distance_RK.shape[1] - 1 - distance_RK[:, ::-1].argmin(1)",
        "tests/tokenizers/test_codebook.py",
    ),
    Mutation(
        "sound: every layer quantises the frame, and not what is left of it",
        "mot/tokenizers/audio.py",
        "left_RP = _left(left_RP, layer_KP[ids_R])",
        "left_RP = left_RP",
        "tests/tokenizers/test_audio.py",
    ),
    Mutation(
        "films: the first frame of each stretch",
        "mot/tokenizers/video.py",
        "return (np.arange(1, frames + 1) * count + frames - 1) // frames - 1",
        "return np.arange(frames) * count // frames",
        "tests/tokenizers/test_video.py",
    ),
    Mutation(
        "joined: rows of both splits make a document",
        "mot/prepare/joined.py",
        "groups.setdefault((value, held_out), [[] for _ in sides])[side].append(row)",
        "groups.setdefault((value, False), [[] for _ in sides])[side].append(row)",
        "tests/prepare/test_joined.py",
    ),
    Mutation(
        "conditioning: the control has the unit's own prompt",
        "mot/measures/conditioning.py",
        "other = d._replace(prompt=documents[j].prompt)",
        "other = d._replace(prompt=d.prompt)",
        "tests/measures/test_conditioning.py",
    ),
    Mutation(
        "text: what is added counts as lost",
        "mot/tokenizers/text.py",
        "gone = Counter(text) - Counter(back)",
        "gone = Counter(back) - Counter(text)",
        "tests/tokenizers/test_text.py",
    ),
    # Generation.
    Mutation(
        "decoding: the nucleus lacks the id that crosses its edge",
        "mot/generate/decoding.py",
        "(before_BV < settings.top_p)",
        "(before_BV + jax.nn.softmax(sorted_BV) < settings.top_p)",
        "tests/generate/test_sampling.py::test_ids_are_drawn_among_the_likeliest",
    ),
    Mutation(
        "decoding: rows draw by their place in the batch",
        "mot/generate/decoding.py",
        "keys = jax.vmap(jax.random.fold_in)(keys_B, state.place_B)\n        id_B",
        "keys = jax.random.split(keys_B[0], len(keys_B))\n        id_B",
        "tests/generate/test_sampling.py::test_a_row_depends_on_its_number_prompt_and_seed_alone",
    ),
    Mutation(
        "layout: a unit is closed by what opens it",
        "mot/data/layout.py",
        "runs = [*before, unit, _marker(medium.closes, format, is_news)]",
        "runs = [*before, unit, _marker(medium.opens, format, is_news)]",
        "tests/data/test_layout.py",
    ),
    Mutation(
        "roles: what is drawn stands before what is read",
        "mot/data/roles.py",
        "            return rule.appearances\n",
        "            return rule.appearances[::-1]\n",
        "tests/data/test_roles.py",
    ),
    # Measures beyond the loss.
    Mutation(
        "likelihood: neighbours in a row take experts' places",
        "mot/measures/likelihood.py",
        "attn=dropless(config.attn), ffn=dropless(config.ffn)",
        "attn=config.attn, ffn=config.ffn",
        "tests/measures/test_likelihood.py::test_neighbours_in_a_row_take_no_experts_place",
    ),
    Mutation(
        "likelihood: routers look at later tokens",
        "mot/measures/likelihood.py",
        "transformer.forward(params, batch, config, causal=True)",
        "transformer.forward(params, batch, config)",
        "tests/measures/test_likelihood.py::test_neighbours_in_a_row_take_no_experts_place",
    ),
    Mutation(
        "layout: the prompt is scored, too",
        "mot/data/layout.py",
        "is_scored = scored is not None and number >= scored",
        "is_scored = scored is not None",
        "tests/measures/test_retrieval.py",
    ),
    Mutation(
        "ranking: tokens of the whole document, not of the candidate",
        "mot/measures/ranking.py",
        "tokens = np.array([d.weight.sum() for d in given])",
        "tokens = np.array([len(d.token) for d in given])",
        "tests/measures/test_ranking.py",
    ),
    Mutation(
        "ranking: the first of those that tie wins",
        "mot/measures/ranking.py",
        "return float(ties[answer] / ties.sum())",
        "return float(scores.argmax() == answer)",
        "tests/measures/test_ranking.py",
    ),
    Mutation(
        "retrieval: an other side's own likelihood is that of the query",
        "mot/measures/retrieval.py",
        "nats_alone.reshape(len(pools), 1, K)",
        "nats_alone.reshape(len(pools), K, 1)",
        "tests/measures/test_retrieval.py",
    ),
    Mutation(
        "retrieval: a pool may hold a side twice",
        "mot/measures/retrieval.py",
        "p[0].streams == streams and not p[1] & keys",
        "p[0].streams == streams",
        "tests/measures/test_retrieval.py",
    ),
    Mutation(
        "distances: the kernel's estimate is biased",
        "mot/measures/distances.py",
        "within = (xx.sum() - np.trace(xx) + yy.sum() - np.trace(yy)) / (n * (n - 1))",
        "within = (xx.sum() + yy.sum()) / (n * n)",
        "tests/measures/test_distances.py",
    ),
    Mutation(
        "distances: the covariances' root is left out",
        "mot/measures/distances.py",
        "root @ s2 @ root",
        "s1 @ s2 @ s1",
        "tests/measures/test_distances.py",
    ),
    # Runs, reports and plans.
    Mutation(
        "peak: the last start's, not the best one's",
        "mot/runs/peak.py",
        "best = max(known._replace(cached=True), now)",
        "best = now",
        "tests/runs/test_peak.py",
    ),
    Mutation(
        "metrics: a loss is a mean of its sources' means",
        "mot/runs/metrics.py",
        'result[f"loss/{modality}"] = float(loss_sum_MO[m].sum() / total)',
        'result[f"loss/{modality}"] = float(np.nanmean(loss_sum_MO[m] / weight_MO[m]))',
        "tests/runs/test_metrics.py",
    ),
    Mutation(
        "report: a level is reached at the next measurement, not between two",
        "scaling/match.py",
        "return float(curve.cost[i - 1] + (above - level) / (above - under) * (curve.cost[i] - curve.cost[i - 1]))",
        "return float(curve.cost[i])",
        "tests/scaling/test_match.py",
    ),
    Mutation(
        "report: an interval of few seeds is not widened",
        "scaling/match.py",
        "half = float(student.ppf(0.975, n - 1) * error)",
        "half = float(1.96 * error)",
        "tests/scaling/test_match.py",
    ),
    Mutation(
        "fit: an error counts by its square, however large",
        "scaling/laws.py",
        "np.minimum(1, problem.delta / np.maximum(np.abs(error_RP), 1e-300))",
        "np.ones_like(error_RP)",
        "tests/scaling/test_laws.py",
    ),
    Mutation(
        "fit: the tokens' term has the size's exponent",
        "scaling/laws.py",
        "np.exp(-pair_G2[:, 1:] * problem.z_P)",
        "np.exp(-pair_G2[:, :1] * problem.z_P)",
        "tests/scaling/test_laws.py",
    ),
    Mutation(
        "fit: all runs of a cell are drawn, which shows too little of their spread",
        "scaling/bootstrap.py",
        "drawn_RN = rng.multinomial(n - 1, np.full(n, 1 / n), size=resamples)",
        "drawn_RN = rng.multinomial(n, np.full(n, 1 / n), size=resamples) * (n - 1) / n",
        "tests/scaling/test_bootstrap.py",
    ),
    Mutation(
        "fit: a best size outside the grid is told",
        "scaling/isoflop.py",
        "if low <= n <= high:",
        "if n > 0:",
        "tests/scaling/test_isoflop.py",
    ),
    Mutation(
        "fit: a law is fitted to what was held out",
        "scaling/fit.py",
        'to_fit = every.where(every.role == "fit")',
        "to_fit = every",
        "tests/scaling/test_fit.py",
    ),
    Mutation(
        "fit: what modalities compete for is not what the laws of runs alone leave",
        "scaling/mixed.py",
        "return (first + second) / 2",
        "return first",
        "tests/scaling/test_mixed.py",
    ),
    Mutation(
        "equal cost: dense is read beyond its sizes",
        "scaling/equal.py",
        "if not n[0] - fit.ALIKE <= np.log(size) <= n[-1] + fit.ALIKE:",
        "if size <= 0:",
        "tests/scaling/test_equal.py",
    ),
    Mutation(
        "beside MaxText: what a device gives counts as what it sends",
        "bench/compared.py",
        "collective.wire * part",
        "collective.bytes * part",
        "tests/bench/test_maxtext.py",
    ),
    Mutation(
        "plan: a loop counts once",
        "mot/plan/hlo.py",
        "run(chosen, times * turns, unknown or is_endless(i, module))",
        "run(chosen, times, unknown or is_endless(i, module))",
        "tests/scaling/test_hlo.py",
    ),
    # Launching.
    Mutation(
        "launch: a template's values are not quoted",
        "launch/targets/render.py",
        "finalize=quote,",
        "finalize=None,",
        "tests/launch/test_launch.py::test_a_template_cannot_forget_to_quote",
    ),
    Mutation(
        "launch: Kubernetes replaces variables in words",
        "launch/targets/gke.py",
        'word.replace("$", "$$")',
        "word",
        "tests/launch/test_launch.py::test_hostile_words_arrive_as_they_are",
    ),
    Mutation(
        "launch: what does not fit is submitted",
        "launch/planning.py",
        'if not plan["fits"]:',
        'if not plan["fits"] and not plan["trouble"]:',
        "tests/launch/test_launch.py::test_a_plan_is_made_before_anything_is_submitted",
    ),
    Mutation(
        "launch: a preempted slice is waited for",
        "launch/targets/tpu_vm.py",
        'GONE = ("FAILED", "SUSPENDING", "SUSPENDED")',
        'GONE = ("FAILED", "SUSPENDING")',
        "tests/launch/test_launch.py::test_a_preempted_slice_is_made_anew_until_the_run_has_ended",
    ),
    Mutation(
        "launch: options are not judged",
        "launch/judging.py",
        "elif given is not True and not re.fullmatch(option.pattern, given, re.ASCII):",
        "elif given is not True and not re.match(option.pattern, given, re.ASCII):",
        "tests/launch/test_launch.py::test_a_hostile_option_is_refused",
    ),
    # Configuration and commands.
    Mutation(
        "checks: a budget may be below its longest document",
        "mot/config/checks.py",
        "if s.max_tokens > s.budget > 0:",
        "if s.max_tokens > 2 * s.budget > 0:",
        "tests/config/test_config.py::test_bad_input_is_named_with_value_and_remedy",
    ),
    Mutation(
        "names: another project's name of a key is not known",
        "mot/config/names.py",
        "return SYNONYMS.get(name) or",
        "return",
        "tests/launch/test_light.py::test_typing_errors_are_answered_before_anything_heavy_is_imported",
    ),
    Mutation(
        "console: a log is mute",
        "mot/console.py",
        "    if not sys.stderr.isatty():\n        print(",
        "    if sys.stderr.isatty():\n        print(",
        "tests/test_console.py",
    ),
    Mutation(
        "run directory: a relative folder stays relative",
        "mot/runs/rundir.py",
        "return absolute(address) if _is_folder(address) else address",
        "return address",
        "tests/launch/test_places.py::test_a_run_is_read_from_any_folder_and_after_its_project_moved",
    ),
    Mutation(
        "cores: as many devices as the machine has, whether they divide or not",
        "launch/cores.py",
        "return next((n for n in range(most, 1, -1) if serves(n)), 1)",
        "return most",
        "tests/launch/test_cores.py::test_as_many_devices_as_divide_the_rows_or_as_the_mesh_asks_for",
    ),
    # Going on in spite of differences.
    Mutation(
        "accept: one kind accepts all",
        "mot/runs/rundir.py",
        "    if not found.keys() - {*accepted}:\n",
        "    if accepted or not found:\n",
        "tests/train/test_unlike.py",
    ),
    Mutation(
        "accept dtype: arrays keep their own",
        "mot/checkpoint/restoring.py",
        "return x.astype(wanted.dtype)",
        "return x",
        "tests/train/test_unlike.py",
    ),
    Mutation(
        "accept data: documents wait that are others now",
        "mot/data/pipeline.py",
        '"waiting": [], "starts": plan["starts"] if same_packing',
        '"waiting": plan["waiting"], "starts": plan["starts"] if same_packing',
        "tests/train/test_unlike.py",
    ),
    Mutation(
        "accept: what was accepted is forgotten where an earlier step is resumed",
        "mot/train/loop.py",
        'row.get("event") in ("accepted", "changed"):',
        'row.get("event") == "changed":',
        "tests/train/test_unlike.py",
    ),
    # What a run from elsewhere may ask.
    Mutation(
        "patterns: a group is repeated",
        "mot/config/checks.py",
        'if re.search(r"\\)[*+?{]", bare):',
        'if re.search(r"\\)[{]", bare):',
        "tests/launch/test_foreign.py",
    ),
    Mutation(
        "evaluation: of a run from elsewhere it has no bound",
        "mot/train/evaluate.py",
        "    if places > most:",
        "    if places > 2 * most:",
        "tests/launch/test_foreign.py",
    ),
    Mutation(
        "fetching: what only the run names is fetched",
        "mot/data/remote.py",
        "    if unknown and not fetch:",
        "    if unknown and fetch is None:",
        "tests/launch/test_foreign.py",
    ),
    # Sweeps.
    Mutation(
        "sweeps: a seed is of the documents, too",
        "configs/sweeps.py",
        '{"model.seed": seed, NAME: f"seed{seed}"}',
        '{"model.seed": seed, "data.seed": seed, NAME: f"seed{seed}"}',
        "tests/config/test_sweeps.py::test_all_arms_read_the_same_batches_byte_for_byte",
    ),
    Mutation(
        "sweeps: the later row of two has its way",
        "configs/sweeps.py",
        'return key == group or key.startswith(f"{group}.")',
        "return False",
        "tests/config/test_sweeps.py",
    ),
    Mutation(
        "sweeps: the dead hold their locks",
        "mot/runs/lock.py",
        "return said if silent < DEAD else {}",
        "return said",
        "tests/runs/test_states.py",
    ),
    Mutation(
        "sweeps: a run that diverged is done, or interrupted",
        "mot/runs/states.py",
        'if last.get("event") == "diverged":',
        'if last.get("event") == "never":',
        "tests/runs/test_states.py",
    ),
    Mutation(
        "sweeps: processes outlive a sweep that is killed",
        "launch/sweep_work.py",
        "while os.getppid() == int(parent):",
        "while True:",
        "tests/launch/test_sweep.py::test_a_killed_sweep_leaves_rows_of_every_state_which_go_on",
    ),
    Mutation(
        "sweeps: what has failed takes others with it again",
        "launch/sweep_work.py",
        "(row.name,) if tries[row.name] else",
        "(row.name,) if tries[row.name] > TRIES else",
        "tests/launch/test_sweep.py::test_rows_that_can_be_one_program_are",
    ),
    Mutation(
        "sweeps: a row is given up without a second try",
        "launch/sweep_work.py",
        "TRIES = 2",
        "TRIES = 1",
        "tests/launch/test_sweep.py::test_rows_are_retried_once_and_then_named",
    ),
    Mutation(
        "sweeps: another sweep's folder is taken",
        "launch/sweep_rows.py",
        "    if not different:\n        return",
        "    if True:\n        return",
        "tests/launch/test_sweep.py::test_a_folder_of_another_sweep_is_refused_with_the_differences",
    ),
    Mutation(
        "sweeps: runs on other batches are one program",
        "launch/sweep_rows.py",
        "if key != NAME and not varied.varies(key)}",
        'if key not in (NAME, "data.seed") and not varied.varies(key)}',
        "tests/launch/test_sweep.py::test_rows_that_can_be_one_program_are",
    ),
    Mutation(
        "answers: the tax is not of equal tokens",
        "scaling/competition.py",
        "tokens = min(at_solo[-1], at_joint[-1])",
        "tokens = max(at_solo[-1], at_joint[-1])",
        "tests/scaling/test_questions.py::test_the_tax_is_of_equal_tokens",
    ),
    Mutation(
        "answers: runs that read other batches are a pair",
        "scaling/questions.py",
        'competition.pairs(solo, joint, (".loss_weight",))',
        'competition.pairs(solo, joint, (".loss_weight", "data."))',
        "tests/scaling/test_questions.py::test_what_is_left_out_of_an_answer_is_said_and_changes_no_number",
    ),
    Mutation(
        "report: a modality that was not trained has curves",
        "scaling/runs.py",
        'if modality.partition("/")[0] not in self.trained:',
        "if False:",
        "tests/scaling/test_questions.py::test_a_modality_that_was_not_trained_has_no_slope_and_no_loss",
    ),
    Mutation(
        "report --watch: links lead out of the page's folder",
        "launch/watch.py",
        " or not file.resolve().is_relative_to(out.resolve())",
        "",
        "tests/launch/test_watch.py::test_only_the_pages_own_files_are_served",
    ),
    Mutation(
        "report: probes of all steps are one line",
        "scaling/within.py",
        'rows = rows[rows.step == rows.groupby("run").step.transform("max")]',
        "rows = rows[rows.step > 0]",
        "tests/scaling/test_within.py::test_lines_are_of_each_runs_newest_step_and_over_training_a_mean_over_layers",
    ),
    # Measures of a checkpoint.
    Mutation(
        "gradients: a modality's loss is divided by its own total",
        "mot/train/probe.py",
        "alone, losses.totals(batch, config))[1]",
        "alone, losses.totals(alone, config))[1]",
        "tests/train/test_probe.py::test_with_noise_microbatches_and_frozen_parts_they_add_up",
    ),
    Mutation(
        "gradients: a tower of one modality is compared",
        "mot/measures/gradients.py",
        "return [m for m, name in enumerate(config.modalities) if name in found]",
        "return list(range(len(config.modalities)))",
        "tests/measures/test_gradients.py",
    ),
    Mutation(
        "representation: a document's mean is of all modalities",
        "mot/measures/representation.py",
        "x_RD = jnp.where(mine[m][:, None], x_RD, 0)",
        "x_RD = jnp.where(own[m].real_R[:, None], x_RD, 0)",
        "tests/measures/test_representation.py",
    ),
    Mutation(
        "attention: padding counts as queries",
        "mot/measures/attention.py",
        "from_BQM = from_BQM * any_BQ[..., None]",
        "from_BQM = from_BQM * 1",
        "tests/measures/test_attention.py",
    ),
    Mutation(
        "experts: a modality with more tokens has more experts",
        "mot/measures/experts.py",
        "rate_ME = load_ME / np.maximum(tokens_M, 1)[:, None]",
        "rate_ME = load_ME / 1.0",
        "tests/measures/test_experts.py",
    ),
    # What is contrasted.
    Mutation(
        "contrast: places without a pair are negatives",
        "mot/objectives/contrastive.py",
        "compared_IJ = sides.there_I[:, None] & sides.there_I[None]",
        "compared_IJ = sides.there_I[:, None] | sides.there_I[None]",
        "tests/objectives/test_contrastive.py",
    ),
    Mutation(
        "contrast: a microbatch adds its part of the loss once more",
        "mot/objectives/contrastive.py",
        "return total - lax.stop_gradient(total)",
        "return total",
        "tests/objectives/test_contrastive.py",
    ),
    Mutation(
        "contrast: the first unit of a part sees its caption",
        "mot/data/roles.py",
        "mine = (d.stream == stream) & (d.unit > 0)",
        "mine = (d.stream == stream) & (d.unit > 1)",
        "tests/objectives/test_contrastive.py",
    ),
    # What makes steps fast.
    Mutation(
        "linears: gradients are rounded before devices add them up",
        "mot/model/ops.py",
        "over_rows(x_RD, g, like.dtype) for g, like",
        "over_rows(x_RD, g, x_RD.dtype) for g, like",
        "tests/model/test_ops.py::test_linears_equal_matmul_and_add_up_gradients_in_the_dtype_of_the_weights",
    ),
    Mutation(
        "linears: parts of a sum along tensor stay parts",
        "mot/model/ops.py",
        "return lax.psum(dx_RD.astype(x_RD.dtype), of_columns)",
        "return dx_RD.astype(x_RD.dtype)",
        "tests/model/test_ops.py::test_linears_equal_matmul_and_add_up_gradients_in_the_dtype_of_the_weights",
    ),
    Mutation(
        "permute: the way back is the way there",
        "mot/model/ops.py",
        "permute(g_BTNH, orders[1], orders[0])",
        "permute(g_BTNH, orders[0], orders[1])",
        "tests/model/test_transformer.py",
    ),
    Mutation(
        "intervals: padding amid a span ends it",
        "mot/model/kernels.py",
        "begins_S = real_S & (",
        "begins_S = ~real_S | (",
        "tests/model/test_kernels.py",
    ),
    Mutation(
        "intervals: a private key is seen past its span",
        "mot/model/kernels.py",
        "jnp.where(k.private, jnp.minimum(to_S, span_last_S), to_S)",
        "to_S",
        "tests/model/test_kernels.py",
    ),
    Mutation(
        "embedding: a device's first id gets the gradients of other devices' ids",
        "mot/model/embed.py",
        "(jnp.where(here_R, local_R, V), jnp.zeros",
        "(jnp.where(here_R, local_R, 0), jnp.zeros",
        "tests/test_sharding.py::test_every_mesh_gives_one_devices_gradients_leaf_by_leaf",
    ),
    Mutation(
        "plan: what is sent meanwhile is never waited for",
        "mot/plan/bound.py",
        "        now += late\n        waited += late\n",
        "        now += late\n",
        "tests/scaling/test_plan.py",
    ),
    Mutation(
        "plan: a slice of no whole cubes has rings",
        "mot/plan/chips.py",
        "rings = [all(rings)] * 3",
        "rings = [True] * 3",
        "tests/scaling/test_plan.py",
    ),
)


def missing() -> Iterator[str]:
    """Mutations whose text does not stand in its file exactly once."""
    for mutation in MUTATIONS:
        if (n := (ROOT / mutation.file).read_text(encoding="utf-8").count(mutation.old)) != 1:
            yield f"{mutation.name}: {mutation.file} has its text {n} times, and must have it once"


def result(mutation: Mutation, copy: Path) -> str:
    """`caught`, with the test that failed, `SURVIVED`, or `BROKEN` where the tests did not even run."""
    file = copy / mutation.file
    text = file.read_text(encoding="utf-8")
    file.write_text(text.replace(mutation.old, mutation.new), encoding="utf-8")
    try:
        command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *mutation.tests.split()]
        env = os.environ | {"JAX_COMPILATION_CACHE_DIR": str(ROOT / ".cache" / "jax"), "PYTHONPATH": str(copy)}
        done = subprocess.run(command, cwd=copy, env=env, capture_output=True, encoding="utf-8")
    finally:
        file.write_text(text, encoding="utf-8")
    failed = [line for line in done.stdout.splitlines() if line.startswith("FAILED ")]
    if done.returncode == 1 and failed:
        return f"caught    by {failed[0].removeprefix('FAILED ').partition(' - ')[0]}"
    return "SURVIVED" if done.returncode == 0 else f"BROKEN    {' '.join(done.stdout.splitlines()[-3:])}"


def main(wanted: list[str]) -> int:
    faults = list(missing())
    print(*faults, sep="\n", end="\n" * bool(faults))
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder)
        for name in COPIED:
            if (ROOT / name).is_dir():
                shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copyfile(ROOT / name, copy / name)
        for mutation in [m for m in MUTATIONS if not wanted or any(m.name.startswith(name) for name in wanted)]:
            found = result(mutation, copy)
            faults += [] if found.startswith("caught") else [found]
            print(f"{mutation.name:75}  {found}", flush=True)
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
