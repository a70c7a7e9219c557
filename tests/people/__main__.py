"""`python -m tests.people MODEL SETTING`: change the rights of a project's users, and write as JSON who was told of
each change and how often the database was asked for users because of it."""

import json
import sys

import django
from channels.layers import InMemoryChannelLayer
from django.conf import settings
from django.core.management import call_command
from django.db import connection
from django.test.utils import CaptureQueriesContext

from tests import settings as common


def main(model: str, setting: str) -> None:
    project = {name: getattr(common, name) for name in dir(common) if name.isupper()}
    project["INSTALLED_APPS"] = [*common.INSTALLED_APPS, "tests.people"]
    settings.configure(**project | {"AUTH_USER_MODEL": f"people.{model}", "EPHEMERAL_STATE": json.loads(setting)})
    django.setup()
    call_command("migrate", run_syncdb=True, verbosity=0)
    json.dump(changes(), sys.stdout)


def changes() -> dict[str, tuple[list[str], int]]:
    from django.contrib.auth import get_user_model
    from django.contrib.auth.models import Group, Permission

    from ephemeral_state.revocation import _untold, user_group

    from .models import HeirByProxy, Human, Neighbour, Youngest

    told: list[str] = []

    async def send(layer: InMemoryChannelLayer, group: str, message: dict[str, str]) -> None:
        told.append(names.get(group, "a stranger"))

    InMemoryChannelLayer.group_send = send
    users = get_user_model()
    ann, bob = users.objects.create(name="ann"), users.objects.create(name="bob")
    names = {user_group({"user": user}): user.name for user in (ann, bob)}
    group = Group.objects.create(name="readers")
    permission = Permission.objects.get(codename="view_group")
    acts = {
        "group.permissions.add": lambda: group.permissions.add(permission),
        "permission.group_set.remove": lambda: permission.group_set.remove(group),
        "permission.group_set.add": lambda: permission.group_set.add(group),
        "permission.group_set.clear": lambda: permission.group_set.clear(),
        "group.permissions.clear": lambda: group.permissions.clear(),
        "group.delete": lambda: group.delete(),
        "user.save": lambda: bob.save(),
    }
    if users.__name__ == "Member":

        class Crew(Group):
            class Meta:
                proxy = True
                app_label = "people"

        crew = Crew.objects.create(name="crew")
        acts = {
            "user.groups.add": lambda: ann.groups.add(group),
            "group.members.clear": lambda: group.members.clear(),
            "group.members.add": lambda: group.members.add(ann),
            "group.members.add again": lambda: group.members.add(ann),
            "permission.holders.add": lambda: permission.holders.add(ann),
            "permission.holders.clear": lambda: permission.holders.clear(),
            "crew.members.add": lambda: crew.members.add(ann),
            "crew.delete": lambda: crew.delete(),
            **acts,
        }
    if users.__name__ == "Heir":
        young, carl = Youngest.objects.create(name="young", number=99), users.objects.create(name="carl")
        names |= {user_group({"user": user}): user.name for user in (young, carl)}
        acts = {
            "parent.save": lambda: Human.objects.get(name="bob").save(),
            "proxy.save": lambda: HeirByProxy.objects.get(name="bob").save(),
            "proxy.save of a login": lambda: HeirByProxy.objects.get(name="bob").save(update_fields=["last_login"]),
            "proxy.create": lambda: HeirByProxy.objects.create(name="new"),
            "child.save": lambda: young.save(),
            "neighbour.create": lambda: Neighbour.objects.create(human_ptr=bob.human_ptr, name="bob", password=""),
            "neighbour.save": lambda: Neighbour.objects.get().save(),
            "proxy.delete": lambda: HeirByProxy.objects.get(name="carl").delete(),
            "child.delete": lambda: young.delete(),
            "parent.delete": lambda: Human.objects.get(name="ann").delete(),
        }
    seen = {}
    for name, act in acts.items():
        _untold.told(30)  # of the last act, or of what was made before
        told.clear()
        with CaptureQueriesContext(connection) as queries:
            act()
        asked = sum("SELECT DISTINCT" in query["sql"] for query in queries)
        _untold.told(30)
        seen[name] = (sorted(told), asked)
    return seen


if __name__ == "__main__":
    main(*sys.argv[1:])
