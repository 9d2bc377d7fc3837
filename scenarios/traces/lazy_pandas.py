"""Lazy pandas: ``pd``, imported when it is first used: that takes time, and most scenarios have no trace."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__all__ = ["pd"]

if TYPE_CHECKING:
    import pandas as pd
else:

    class _Pandas:
        def __getattr__(self, name: str) -> Any:
            import pandas

            value = getattr(pandas, name)
            setattr(self, name, value)  # so that the next look finds it at once
            return value

    pd = _Pandas()
