"""Apps of the shapes that people add the mixin to. `apps.py` has each of them without it, and with it."""
