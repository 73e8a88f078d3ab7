"""The built-in tasks: name -> where its factory is. Nothing here is imported before it is asked for."""

TASKS = {
    "ladder": "evometa.tasks.ladder:ladder",
    "digits": "evometa.tasks.digits:digits",
    "tables": "evometa.tasks.tables:tables",
    "functions": "evometa.tasks.functions:functions",
}
