"""Runs migrations for `alembic …` in a checkout as for `rowcast migrate …` anywhere."""

from rowcast import schema, settings

from alembic import context

if context.is_offline_mode():
    raise SystemExit("migrations look at the database they run on: there is no offline mode")

schema.run(context.config.attributes.get("url") or settings.load().database_url)
