"""The example: a chat with rooms. Who is here, who is typing, everyone's cursor; `python manage.py demo` runs it.

In reading order: `consumers` (what a project writes), `policy` (what the ready-made consumer may do), `routing`,
`models`, `views`, and in `static/project/` the browser's side, made with `ephemeral-state.js` of the package.
"""
