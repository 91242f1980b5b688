"""What a run is: a tree of values (configs/) becomes a frozen, checked `Config`, once and strictly."""

from mot.config.build import Check as Check
from mot.config.build import differences as differences
from mot.config.build import reads as reads
from mot.config.build import resolve as resolve
from mot.config.schema import (
    Config as Config,
)
from mot.config.schema import (
    ConfigError as ConfigError,
)
from mot.config.schema import (
    Data as Data,
)
from mot.config.schema import (
    Diffusion as Diffusion,
)
from mot.config.schema import (
    Experts as Experts,
)
from mot.config.schema import (
    Init as Init,
)
from mot.config.schema import (
    Mesh as Mesh,
)
from mot.config.schema import (
    Model as Model,
)
from mot.config.schema import (
    Objective as Objective,
)
from mot.config.schema import (
    Optim as Optim,
)
from mot.config.schema import (
    Rule as Rule,
)
from mot.config.schema import (
    Run as Run,
)
from mot.config.schema import (
    Stage as Stage,
)
from mot.config.schema import (
    Stream as Stream,
)
from mot.config.schema import (
    Towers as Towers,
)
from mot.config.schema import (
    Wall as Wall,
)
