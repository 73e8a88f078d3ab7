"""Plain tables and short texts about runs: for a terminal, a log, a pipe."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from evometa import champion, folder
from evometa.archives import events, ledger
from evometa.archives.read import Archive
from evometa.errors import IntegrityError
from evometa.reports.values import rates_of, readable
from evometa.space import Space

Rows = list[dict[str, Any]]


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows of the same keys as an aligned table; numbers to the right."""
    if not rows:
        return "(nothing)"
    names = list(dict.fromkeys(name for row in rows for name in row))
    texts = [[cell_text(row.get(name)) for name in names] for row in rows]
    widths = [max(len(name), *(len(line[i]) for line in texts)) for i, name in enumerate(names)]
    right = [all(isinstance(row.get(name), int | float | None) for row in rows) for name in names]

    def line(cells: Sequence[str]) -> str:
        padded = [c.rjust(w) if r else c.ljust(w) for c, w, r in zip(cells, widths, right, strict=True)]
        return "  ".join(padded).rstrip()

    return "\n".join([line(names), line(["-" * w for w in widths]), *map(line, texts)])


def cell_text(value: Any) -> str:
    """A value as it stands in a table."""
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        if not math.isfinite(value):
            return "failed" if value > 0 else str(value)
        return f"{value:.6g}" if abs(value) < 1e-3 or abs(value) >= 1e5 else f"{value:.4f}"
    return str(value)


def interval_text(low: float | None, high: float | None) -> str:
    """An interval in brackets; a dash where there is none to give."""
    return "-" if low is None or high is None else f"[{low:+.4f}, {high:+.4f}]"


# --- runs ----------------------------------------------------------------------------------------------


def runs_rows(out: Path) -> Rows:
    """One row per run in a folder; `looks`: the most that any of its test domains' data have had, in any run."""
    rows = []
    ledgers: dict[Path, list[events.Entry]] = {}
    for path in folder.list_runs(out):
        try:
            record, best, diary = folder.read_record(path), champion.last(path), events.diary(path)
            generations, until = Archive(path).generations(), folder.target(path)
            root = ledger.root(path)
            ledgers[root] = ledgers[root] if root in ledgers else ledger.read(root)
            looks = domain_looks(diary, ledgers[root])
        except IntegrityError as error:
            # One damaged run must not hide the others.
            rows.append({"run": path.name, "task": f"damaged: {error}"})
            continue
        rows.append(
            {
                "run": path.name,
                "task": record["task"]["name"],
                "strategy": record["strategy"]["name"],
                "objective": ", ".join(record["task"]["objectives"]),
                "generations": generations,
                "of": until,
                "validation": best.validation if best else None,
                "baseline": best.baseline if best and math.isfinite(best.baseline) else None,
                "opened": sum(event["kind"] == "opening" for event in diary),
                "looks": max((n for n in looks.values() if n is not None), default=None),
            }
        )
    return rows


def runs_table(rows: Rows, out: Path) -> str:
    """The runs, or what to type where there is none."""
    if not rows:
        return f"no run in {out}. Start one with: evometa run ladder --out {out}"
    shown = [
        {**row, "looks": f"{row['looks']}, no longer unseen"} if (row.get("looks") or 0) > 1 else row for row in rows
    ]
    return table(shown)


def domain_looks(diary: Sequence[Mapping[str, Any]], entries: Sequence[events.Entry]) -> dict[str, int | None]:
    """Test domain -> how many openings its data have had so far, in whatever run; empty where the run had none.

    `diary`: the run's events, `entries`: the ledger beside it. None: the ledger does not know the run's opening.
    """
    finished = {event["opening"] for event in diary if event["kind"] == "opened"}
    openings = [event for event in diary if event["kind"] == "opening" and event["opening"] in finished]
    announced = {event["hash"] for event in openings}
    mine = [entry for entry in entries if announced & set(ledger.look(entry))]
    looks: dict[str, int | None] = {}
    for name in dict.fromkeys(name for event in openings for name in event["domains"]):
        made_of = {ledger.data(entry)[name] for entry in mine if name in ledger.data(entry)}
        made_of |= {entry["sources"][name] for entry in mine if name in entry.get("sources", {})}
        looks[name] = len({ledger.look(entry) for entry in entries if made_of & ledger.words(entry)}) or None
    return looks


def report_data(path: Path) -> dict[str, Any]:
    """What a run is, its champion, every opening of its test domains, and the looks that each domain's data have had.

    The `looks` of an opening are those until then, that one included; those of a domain are all until now.
    """
    record, best, archive = folder.read_record(path), champion.last(path), Archive(path)
    task = record["task"]
    data: dict[str, Any] = {
        "run": path.name,
        "task": task["name"],
        "objective": ", ".join(task["objectives"]),
        "strategy": record["strategy"]["name"],
        "population": record["strategy"]["population"],
        "seed": record["seed"],
        "generations": archive.generations(),
        "of": folder.target(path),
        "split": task["split"],
        "black_box": task["black_box"],
        "from": record.get("from"),
        "champion": None,
        "openings": [],
        "looks": [],
    }
    if best is not None:
        space = Space.from_json(record["task"]["space"])
        data["champion"] = {
            "generation": best.generation,
            "index": best.index,
            "label": best.label,
            "validation": best.validation,
            "baseline": best.baseline if math.isfinite(best.baseline) else None,
            "domains": list(best.domains),
            "params": readable(space, best.genome),
        }
    diary = events.diary(path)
    for event in diary:
        if event["kind"] == "opened":
            data["openings"].append({key: event[key] for key in ("opening", "looks", "overall")})
    looks = domain_looks(diary, ledger.read(ledger.root(path)))
    data["looks"] = [{"domain": name, "looks": count} for name, count in looks.items()]
    return data


def report_text(data: Mapping[str, Any]) -> str:
    """`report_data` for a reader."""
    lines = [
        f"run         {data['run']}",
        f"task        {data['task']}, objective {data['objective']}",
        f"search      {data['strategy']}, population {data['population']}, seed {data['seed']},"
        f" {data['generations']} of {data['of']} generations",
    ]
    if data["from"]:
        lines.append(f"fork of     {data['from']['run']} at generation {data['from']['generation']}")
    if data["black_box"]:
        lines.append("note        one function: nothing held out by construction")
    lines += [f"{role:<12}{', '.join(names)}" for role, names in data["split"].items() if names]
    best = data["champion"]
    if best is None:
        lines.append(f"champion    none yet. Finish the run with: evometa resume {data['run']}")
    else:
        who = (
            f"{best['generation']}:{best['index']}"
            if best["index"] is not None
            else f"a mean, after generation {best['generation']}"
        )
        lines.append(f"champion    {who} ({best['label']})")
        base = "" if best["baseline"] is None else f", baseline {best['baseline']:.4f}"
        lines.append(f"validation  promises {best['validation']:.4f}{base} on {', '.join(best['domains'])}")
        lines += [f"  {name} = {cell_text(value)}" for name, value in best["params"].items()]
    for opening in data["openings"]:
        o = opening["overall"]
        lines.append(
            f"opening {opening['opening']}   difference {cell_text(o['difference'])}"
            f" {interval_text(o['low'], o['high'])},"
            f" {o['estimand']}, unit {o['unit']}{_looks(opening['looks'])}"
        )
    by_count: dict[int | None, list[str]] = defaultdict(list)
    for row in data["looks"]:
        by_count[row["looks"]].append(row["domain"])
    lines += [f"looks       {', '.join(names)}: {_times_opened(count)}" for count, names in by_count.items()]
    return "\n".join(lines)


def _times_opened(looks: int | None) -> str:
    if looks is None:
        return f"not known, {ledger.FILE} is not beside the run"
    return "opened once" if looks == 1 else f"opened {looks} times, no longer unseen"


def _looks(looks: int) -> str:
    """A second look is a second look, wherever it is shown."""
    if looks <= 1:
        return ""
    return f"  [look {looks} at these data: no longer unseen]"


def opening_table(result: Mapping[str, Any]) -> str:
    """What an unsealing found, per domain and overall."""
    rows = [
        {
            "domain": row["domain"],
            "champion": row["champion"],
            "baseline": row["baseline"],
            "difference": row["difference"],
            "95 % interval": interval_text(row["low"], row["high"]),
        }
        for row in result["domains"]
    ]
    o = result["overall"]
    interval = interval_text(o["low"], o["high"])
    words = f"overall {cell_text(o['difference'])} {interval} ({o['estimand']}; unit: {o['unit']})"
    head = (
        f"{result['run']}, opening {result['opening']}, {result['seeds']} seeds;"
        " difference = champion - baseline, negative is better"
    )
    looks = _looks(result["looks"]).strip()
    return "\n".join([head, table(rows), words, *([looks] if looks else [])])


def demo_table(result: Mapping[str, Any]) -> str:
    """The demonstration at one glance."""
    rows = [
        {
            "arm": row["arm"],
            "home loss": row["home"],
            "sealed away loss": row["away"],
            "difference from baseline": row["difference"],
            "95 % interval": interval_text(row["low"], row["high"]),
        }
        for row in result["rows"]
    ]
    return "\n".join(
        [
            "",
            f"Sealed languages {', '.join(result['domains'])}; {result['seeds']} seeds each;"
            " losses in nats per character, lower is better.",
            f"{result['evaluations']} candidates per search. Interval: {result['estimand']}; unit: {result['unit']}.",
            "",
            table(rows),
            "",
            *(
                [f"These languages have been opened {result['looks']} times in this folder: no longer unseen.", ""]
                if result["looks"] > 1
                else []
            ),
            "next:",
            *[f"  {line}" for line in result["next"]],
        ]
    )


# --- one archive ---------------------------------------------------------------------------------------


def parts_rows(path: Path) -> Rows:
    """One row per part file."""
    rows = []
    for part in Archive(path).parts():
        generation = part.read(["generation"])["generation"]
        rows.append(
            {
                "part": part.path.name,
                "generations": f"{part.first} .. {generation[-1].as_py()}",
                "rows": len(generation),
                "bytes": part.path.stat().st_size,
            }
        )
    return rows


def top_rows(rows: Sequence[Mapping[str, Any]]) -> Rows:
    """The stable form of `archive top --json`."""
    return [
        {
            "generation": row["generation"],
            "index": row["index"],
            "fitness": row["fitness"],
            "params": {**row["params"], **row["choices"]},
        }
        for row in rows
    ]


def candidate_text(row: Mapping[str, Any], replay: Mapping[str, Any] | None) -> str:
    """One candidate for a reader."""
    parents = ", ".join(f"{p['generation']}:{p['index']}" for p in row["parents"]) or "none"
    lines = [
        f"candidate {row['generation']}:{row['index']} of {row['run']}",
        f"fitness   {cell_text(row['fitness'])}  ({row['failure']}{': ' + row['message'] if row['message'] else ''})",
        f"made by   {row['operator']}, parents {parents}",
        *[f"  {name} = {cell_text(value)}" for name, value in {**row["params"], **row["choices"]}.items()],
    ]
    if rates := rates_of(row):
        lines.append("made with " + ", ".join(f"{name} {value:.3g}" for name, value in rates.items()))
    if row["text"]:
        lines.append(f"formula   {row['text']}")
    scores = [{k: s[k] for k in ("domain", "query", "role", "replicate", "loss")} for s in row["scores"]]
    lines += ["", table(scores)]
    if replay is not None:
        verdict = "the same to the bit" if replay["equal"] else f"DIFFERENT in {len(replay['differing'])} cells"
        lines += ["", f"replayed: fitness {cell_text(replay['replayed'])}, {verdict}"]
        if replay["differing"]:
            lines.append(table(replay["differing"]))
    return "\n".join(lines)


def scores_rows(path: Path, candidate: tuple[int, int] | None) -> Rows:
    """Of one candidate: its cells. Of a run: per domain and query the median loss of its first and last generation."""
    if candidate is not None:
        row = Archive(path).row(*candidate)
        return [{k: s[k] for k in ("domain", "query", "role", "replicate", "loss")} for s in row["scores"]]
    from evometa.archives.query import query

    return query(
        path,
        "SELECT domain, query, role,"
        " median(loss) FILTER (generation = (SELECT min(generation) FROM lineage)) AS first_generation,"
        " median(loss) FILTER (generation = (SELECT max(generation) FROM lineage)) AS last_generation,"
        " min(loss) AS best_observed FROM scores GROUP BY ALL ORDER BY query, domain",
    )
