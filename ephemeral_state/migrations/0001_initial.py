from django.db import migrations, models


class Migration(migrations.Migration):
    """Makes no table. Django creates permission rows only for apps that have migrations."""

    initial = True

    operations = (
        migrations.CreateModel(
            name="Entry",
            fields=[
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
            ],
            options={
                "verbose_name": "live entry",
                "verbose_name_plural": "live entries",
                "managed": False,
                "base_manager_name": "objects",
                "default_permissions": ("view", "delete"),
            },
        ),
    )
