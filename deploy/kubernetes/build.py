"""Writes what the manifests share with Prometheus and Grafana: `python deploy/kubernetes/build.py`.

monitoring/prometheusrule.yaml holds ../prometheus/rules.yml, monitoring/dashboard.yaml the boards.
A test checks that it was run.
"""

from pathlib import Path

HERE = Path(__file__).parent
HEAD = """\
# Written by ../build.py; do not edit.
apiVersion: {api}
kind: {kind}
metadata:
  name: {name}
  labels:
    app.kubernetes.io/name: tiercel
"""


def rule() -> str:
    """The alerts, in the operator's clothes."""
    text = (HERE.parent / "prometheus" / "rules.yml").read_text()
    groups = text[text.index("groups:\n") :]
    head = HEAD.format(api="monitoring.coreos.com/v1", kind="PrometheusRule", name="tiercel")
    return head + "spec:\n" + _indented(groups, 2)


def dashboard() -> str:
    """The board as Grafana's sidecar looks for it."""
    head = HEAD.format(api="v1", kind="ConfigMap", name="tiercel-dashboard")
    board = (HERE.parent / "grafana" / "dashboards" / "tiercel.json").read_text()
    label = '    grafana_dashboard: "1"\n'
    return head + label + "data:\n  tiercel.json: |\n" + _indented(board, 4)


def _indented(text: str, spaces: int) -> str:
    return "".join(" " * spaces + line for line in text.splitlines(keepends=True))


FILES = {"prometheusrule.yaml": rule, "dashboard.yaml": dashboard}

if __name__ == "__main__":
    for name, make in FILES.items():
        (HERE / "monitoring" / name).write_text(make())
