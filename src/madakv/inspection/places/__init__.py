"""Where the visual tokens of a prompt stand in its pictures and videos."""

from madakv.inspection.places.views import views

__all__ = ["views"]
