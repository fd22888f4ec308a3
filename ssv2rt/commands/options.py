"""What commands share: option groups in --help, common options, and shell completion of names."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, TypeVar

import click
from click.shell_completion import CompletionItem

F = TypeVar("F", bound=Callable[..., Any])
Decorator = Callable[[F], F]

OTHER = "Other options"
"""Heading of the options that are in no group, in a command that has groups."""


class Command(click.Command):
    """A command whose --help shows its options in groups; see `under`."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        headings: dict[str, str] = getattr(self.callback, "option_headings", {})
        rest = OTHER if headings else "Options"
        sections: dict[str, list[tuple[str, str]]] = {heading: [] for heading in (*headings.values(), rest)}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            if record is not None and isinstance(parameter, click.Option):
                # Options that set the same parameter, such as --fp16 and --int8, are in the same group.
                sections[headings.get(parameter.name or "", rest)].append(record)
        for heading, records in sections.items():
            if records:
                with formatter.section(heading):
                    formatter.write_dl(records)


def under(heading: str, *options: Callable[[Any], Any]) -> Callable[[F], F]:
    """Adds several options to a command, as a group with a heading in --help."""

    def add(function: F) -> F:
        before = len(function.__dict__.get("__click_params__", []))
        for option in reversed(options):
            option(function)
        added = function.__dict__["__click_params__"][before:]
        earlier = function.__dict__.get("option_headings", {})
        function.__dict__["option_headings"] = {parameter.name: heading for parameter in reversed(added)} | earlier
        return function

    return add


class FloatRange(click.FloatRange):
    """A range of numbers without nan, which click lets pass, as it is neither below nor above a bound."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        number = float(super().convert(value, param, ctx))
        return self.fail(f"{value} is not a number.", param, ctx) if math.isnan(number) else number


def json_option(what: str) -> Callable[[F], F]:
    """The option --json, which prints `what` as JSON."""
    return click.option("--json", "as_json", is_flag=True, help=f"Print {what} as JSON.")


def set_option(example: str, what: str = "a setting") -> Callable[[F], F]:
    """The option --set KEY=VALUE, which may be repeated."""
    help = f"Change {what}, such as {example}; may be repeated."
    return click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help=help)


def complete_run(ctx: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Completes names of runs, or files."""
    from ssv2rt.core.run_folders import known_runs

    return _matching(incomplete, known_runs())


def complete_engine_run(ctx: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Completes names of runs and of folders that only have engines, or files."""
    from ssv2rt.core.run_folders import known_runs

    return _matching(incomplete, known_runs(for_engine=True))


def complete_recipe(ctx: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Completes names of training recipes, or files."""
    from ssv2rt.core.recipe_files import recipe_names

    return _matching(incomplete, recipe_names("pipelines"))


def complete_engine_recipe(ctx: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Completes names of engine recipes, or files."""
    from ssv2rt.core.recipe_files import recipe_names

    return _matching(incomplete, recipe_names("engines"))


def complete_any_recipe(ctx: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Completes names of training and engine recipes, or files."""
    from ssv2rt.core.recipe_files import recipe_names

    return _matching(incomplete, [*recipe_names("pipelines"), *recipe_names("engines")])


def complete_model(ctx: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Completes names of networks."""
    from ssv2rt.models.registry import model_names

    return [CompletionItem(name) for name in model_names() if name.startswith(incomplete)]


def complete_published(ctx: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Completes names of published weights, or files."""
    from ssv2rt.published.catalog import PUBLISHED

    return _matching(incomplete, list(PUBLISHED))


def complete_initial_weights(ctx: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Completes names of published weights and of runs, or files."""
    from ssv2rt.core.run_folders import known_runs
    from ssv2rt.published.catalog import IMAGENET, PUBLISHED

    return _matching(incomplete, [*PUBLISHED, *IMAGENET, *known_runs()])


def _matching(incomplete: str, names: list[str]) -> list[CompletionItem]:
    """The names that start with `incomplete`; if there are none, the shell completes files."""
    found = [CompletionItem(name) for name in names if name.startswith(incomplete)]
    return found or [CompletionItem(incomplete, type="file")]
