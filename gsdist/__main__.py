"""Run the command line as `python -m gsdist`, which launchers such as torchrun need."""

import sys

from gsdist.cli.main import main

sys.exit(main())
