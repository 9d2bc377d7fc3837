"""loratory.policy: everything a policy file imports: actions, outcomes, views, events, and tools to write one with.

See docs/policies.md for a tutorial and for every name.
"""

from loratory.serving.policy import *  # noqa: F403 - the list is below
from loratory.serving.policy import __all__ as __all__
