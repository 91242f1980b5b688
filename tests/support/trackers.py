"""A tracker that a test breaks and mends, in place of W&B and trackio."""

import threading

from mot.runs import services, trackers


class Fake:
    """Keeps what it was given through restarts, as a server does. `fault(step)` is called before a row is taken."""

    def __init__(self):
        self.abouts = []  # one for each time that it was opened
        self.rows = {}  # by the run's id: [(step, points)]
        self.closed = 0
        self.fault = None
        self.closing = None  # is called when it is closed
        self.has = {}  # what it says that it has

    def open(self, about):
        self.abouts.append(about)
        rows = self.rows.setdefault(about.id, [])

        def log(step, points):
            if self.fault:
                self.fault(step)
            rows.append((step, dict(points)))

        def close():
            if self.closing:
                self.closing()
            self.closed += 1

        return services.Opened(log, close, "somewhere", self.has)

    def places(self):
        """`train 1`, `eval 1`, ... of the one run that it has, in the order in which it was given them."""
        (rows,) = self.rows.values()
        return [f"{'eval' if any(tag.startswith('eval') for tag in points) else 'train'} {at}" for at, points in rows]


def installed(monkeypatch, *names):
    """A `Fake` in place of each tracker of these names, impatient, as if its package were installed."""
    fakes = {name: Fake() for name in names}
    monkeypatch.setattr(trackers, "OPENERS", {name: fake.open for name, fake in fakes.items()})
    monkeypatch.setattr(trackers, "refuse_absent", lambda _: None)
    monkeypatch.setattr(trackers, "OFTEN", 0.01)
    monkeypatch.setattr(trackers, "PAUSE", 0.01)
    return list(fakes.values())


class Hanging:
    """A fault that hangs until it is let go."""

    def __init__(self):
        self.is_asked = threading.Event()
        self.let_go = threading.Event()

    def __call__(self, *_):
        self.is_asked.set()
        assert self.let_go.wait(60)
