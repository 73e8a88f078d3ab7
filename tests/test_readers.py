"""placeholder"""
from helpers import cli
pytest_plugins = ["shared"]
def test_a(copies):
    for n in ("ridge","plain","static"):
        print(cli("archive","check",n), cli("archive","show",n,"1:2","--replay","--json").out[-200:])
