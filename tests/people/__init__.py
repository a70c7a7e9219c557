"""Projects with users of their own, which are not those of `django.contrib.auth`."""
