import io
import json

import pytest
from django.contrib.auth.models import Permission
from django.core.management import call_command
from django.db import connection

from ephemeral_state.models import Entry

pytestmark = pytest.mark.django_db


def test_migrate_makes_the_permissions_of_the_admin_and_no_other():
    codenames = Permission.objects.filter(content_type__app_label="ephemeral_state").values_list("codename", flat=True)
    assert set(codenames) == {"view_entry", "delete_entry", "clear_topic", "disconnect_client"}


def test_no_table_is_made():
    assert not [name for name in connection.introspection.table_names() if "ephemeral" in name]


def test_the_migrations_are_complete():
    call_command("makemigrations", "ephemeral_state", check=True, dry_run=True, verbosity=0)


def test_queries_are_answered_without_the_database(django_assert_num_queries):
    with django_assert_num_queries(0):
        assert list(Entry.objects.filter(pk=1).order_by("pk")) == []
        assert Entry._base_manager.count() == 0
        assert Entry.objects.all().delete() == (0, {})


@pytest.mark.parametrize("all_rows", [False, True])
def test_dumpdata_does_not_stumble_over_the_missing_table(all_rows):
    out = io.StringIO()
    call_command("dumpdata", "ephemeral_state", "contenttypes", use_base_manager=all_rows, stdout=out)
    models = {row["model"] for row in json.loads(out.getvalue())}
    assert models == {"contenttypes.contenttype"}


def test_a_test_database_can_be_serialized_and_flushed():
    rows = json.loads(connection.creation.serialize_db_to_string())
    assert {"app_label": "ephemeral_state", "model": "entry"} in [row["fields"] for row in rows]
    assert "ephemeral" not in call_command("sqlflush", stdout=io.StringIO())
