"""The built-in tasks: name -> where its factory is. Nothing here is imported before it is asked for."""

TASKS = {
    "ladder": "evometa.tasks.ladder:ladder",
    "digits": "evometa.tasks.digits:digits",
    "tables": "evometa.tasks.tables:tables",
    "functions": "evometa.tasks.functions:functions",
    "learned_opt": "evometa.tasks.learned_opt:learned_opt",
    "local_rule": "evometa.tasks.local_rule:local_rule",
    "sym_bbo": "evometa.tasks.sym_bbo:sym_bbo",
    "rl_loss_graph": "evometa.tasks.rl_loss:rl_loss_graph",
    "dsl_godel": "evometa.tasks.dsl_godel:dsl_godel",
    "courses": "evometa.tasks.courses:courses",
}
