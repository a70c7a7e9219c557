"""`manage.py ephemeral_state`: the command in `commands`, what it says and does in a module for each subcommand.

terminal   text that is safe to print
entries    list, clear
watch      watch
processes  processes
checkup    what can be wrong in Redis, looked for and repaired in small steps
doctor     doctor
"""
