"""What the supervisor tells the control plane beyond "stop"."""

import signal
from typing import Final

# End every lease and internal job with its notice, then stop.
DRAIN: Final = signal.SIGUSR1
