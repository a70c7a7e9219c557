from django.db import migrations


class Migration(migrations.Migration):
    """State only, like the model: brings the permissions for clearing a topic and for disconnecting a client."""

    dependencies = (("ephemeral_state", "0001_initial"),)

    operations = (
        migrations.AlterModelOptions(
            name="entry",
            options={
                "base_manager_name": "objects",
                "default_permissions": ("view", "delete"),
                "managed": False,
                "permissions": (
                    ("clear_topic", "Can clear a whole topic"),
                    ("disconnect_client", "Can disconnect the owner of a live entry"),
                ),
                "verbose_name": "live entry",
                "verbose_name_plural": "live entries",
            },
        ),
    )
