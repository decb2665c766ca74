"""Settings: what wins, what is refused, and how it is told."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any, get_args

import msgspec
import pytest

from kvmeta.errors import InputError, NotFoundError
from kvmeta_server import config
from kvmeta_server.config import Config


def load(file: Path | None = None, *settings: str, env: dict[str, str] | None = None, **flags: Any) -> Config:
    return config.load(file, env or {}, {"data": "catalog", **flags}, settings)


def refused(*args: Any, **named: Any) -> str:
    with pytest.raises(InputError) as caught:
        load(*args, **named)
    return str(caught.value)


@pytest.fixture
def toml(tmp_path: Path) -> Any:
    def write(text: str) -> Path:
        (tmp_path / "kvmeta.toml").write_text(text)
        return tmp_path / "kvmeta.toml"

    return write


def test_the_default_address_is_reachable_only_from_this_machine() -> None:
    settings = load()
    assert (settings.listen, settings.insecure, settings.host) == ("127.0.0.1:7400", False, "127.0.0.1")
    assert settings.data == "catalog"


def test_flags_win_over_settings_then_environment_then_file(toml: Any) -> None:
    file = toml(
        'listen = "127.0.0.1:1"\n[limits]\ncalls_max = 1\njobs_max = 1\ndrain_s = 1\n[log]\nlevel = "debug"'
    )
    env = {
        "KVMETA_SERVE_LIMITS_CALLS_MAX": "2",
        "KVMETA_SERVE_LIMITS_JOBS_MAX": "2",
        "KVMETA_SERVE_LISTEN": "127.0.0.1:2",
        "UNRELATED": "x",
    }
    settings = load(file, "limits.jobs_max=3", "listen=127.0.0.1:3", env=env, listen="127.0.0.1:4")
    assert (settings.limits.drain_s, settings.log.level) == (1.0, "debug")
    assert settings.limits.calls_max == 2
    assert settings.limits.jobs_max == 3
    assert settings.listen == "127.0.0.1:4"


def is_struct(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, msgspec.Struct)


def leaves(kind: Any = Config, path: tuple[str, ...] = ()) -> dict[tuple[str, ...], Any]:
    """Return every setting's path and default."""
    found: dict[tuple[str, ...], Any] = {}
    for field in msgspec.structs.fields(kind):
        own = (*path, field.name)
        kind = next((each for each in get_args(field.type) if is_struct(each)), field.type)
        if is_struct(kind):
            found |= leaves(kind, own)
        else:
            found[own] = field.default
    return found


GIVEN = {
    ("data",): "catalog",
    ("cluster", "name"): "prod",
    ("cluster", "advertise"): "10.0.0.1:7400",
}
"""What is given where a setting has no default that could be."""


def test_every_setting_has_a_variable() -> None:
    for path, default in leaves().items():
        value = GIVEN.get(path, default)
        name = "KVMETA_SERVE_" + "_".join(path).upper()
        others = {"KVMETA_SERVE_DATA": "catalog"}
        if path[0] == "cluster":
            others["KVMETA_SERVE_CLUSTER_NAME"] = "prod"
        got: Any = config.load(None, {**others, name: str(value)}, {})
        for step in path:
            got = getattr(got, step)
        assert got == value, path


def test_a_given_value_is_distinguished_from_an_equal_default() -> None:
    def replicas(*settings: str) -> int:
        got = config.load(None, {}, {"data": "catalog"}, ["cluster.name=prod", *settings])
        assert got.cluster is not None
        return got.cluster.replicas

    assert isinstance(replicas(), config.Unsaid)
    assert replicas("cluster.replicas=3") == replicas() == 3
    assert not isinstance(replicas("cluster.replicas=3"), config.Unsaid)


def test_every_setting_is_in_the_documentation_with_its_default() -> None:
    page = (Path(__file__).parents[3] / "docs" / "operating.md").read_text()
    table = page.split("| setting | default | |")[1].split("\n\n")[0]
    rows = re.findall(r"^\| `([a-z_.]+)` \|(?: `([^`]+)`)? \| (\S.+) \|$", table, re.MULTILINE)
    listed = {
        tuple(name.split(".")): tomllib.loads(f"x = {value}")["x"] if value else msgspec.NODEFAULT
        for name, value, _ in rows
    }
    assert list(listed.items()) == list(leaves().items())


def test_a_store_must_be_named() -> None:
    with pytest.raises(InputError, match="data: missing; say where the store is, with --data DIR"):
        config.load(None, {}, {"data": None})
    assert refused(data="") == "--data: expected text of length >= 1, got ''"


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("[limits]\ncalls_max = true", "limits.calls_max: expected a whole number, got True"),
        ("[limits]\ncalls_max = 3.5", "limits.calls_max: expected a whole number, got 3.5"),
        ("[limits]\ncalls_max = 0", "limits.calls_max: expected a whole number >= 1, got 0"),
        ("[limits]\ndeadline_s = inf", "limits.deadline_s: expected a number <= 1000000.0, got inf"),
        ("[limits]\ndeadline_s = nan", "limits.deadline_s: expected a number > 0.0, got nan"),
        ("[limits]\ncall_max = 3", "limits.call_max: there is no such setting"),
        ("[limit]\ncalls_max = 3", "limit: there is no such setting"),
        ("[limits.calls_max]\nx = 3", "limits.calls_max: expected a whole number, got {'x': 3}"),
        ("limits = 4", "limits: expected a table, got 4"),
        ("listen = 7400", "listen: expected text, got 7400"),
        ("insecure = 1.5", "insecure: expected true or false, got 1.5"),
        ('[log]\nformat = "xml"', "log.format: expected one of text, json, got 'xml'"),
        ("[threads]\nlookup = -1", "threads.lookup: expected a whole number >= 0, got -1"),
        (
            "[limits]\nmessage_bytes_max = 100",
            "limits.message_bytes_max: 100 bytes are too few for 65536 rows",
        ),
        ("listen = ''", "listen: expected HOST:PORT, got ''"),
    ],
)
def test_an_error_in_a_file_names_the_file_and_setting(toml: Any, text: str, told: str) -> None:
    file = toml(text)
    assert refused(file).startswith(f"{file}: {told}")


@pytest.mark.parametrize("raw", [b"x", b'data = "\xff"', b'data = "a" b'])
def test_a_file_that_is_not_toml_is_refused(tmp_path: Path, raw: bytes) -> None:
    (tmp_path / "odd").write_bytes(raw)
    assert refused(tmp_path / "odd").startswith(f"{tmp_path / 'odd'}: not TOML: ")


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="absent"):
        load(tmp_path / "absent")


@pytest.mark.parametrize(
    ("setting", "told"),
    [
        ("nonsense", "--set nonsense: expected KEY=VALUE, such as limits.calls_max=512"),
        ("=3", "--set =3: expected KEY=VALUE, such as limits.calls_max=512"),
        ("limits=3", "--set limits: expected a table, got '3'"),
        ("limits.=3", "--set limits.: there is no such setting"),
        ("nope.x=1", "--set nope: there is no such setting"),
        ("limits.calls_max=many", "--set limits.calls_max: expected a whole number, got 'many'"),
        (
            "limits.deadline_required=maybe",
            "--set limits.deadline_required: expected true or false, got 'maybe'",
        ),
        ("listen.x=1", "--set listen: expected text, got {'x': '1'}"),
    ],
)
def test_an_error_in_a_setting_names_the_setting(setting: str, told: str) -> None:
    assert refused(None, setting) == told


def test_a_setting_under_a_non_table_names_the_source_of_the_value(toml: Any) -> None:
    file = toml("limits = 4")
    assert refused(file, "limits.calls_max=3") == f"{file}: limits: expected a table, got 4"


def test_an_error_in_a_variable_names_the_variable_and_setting() -> None:
    name = "KVMETA_SERVE_LIMITS_CALLS_MAX"
    assert refused(env={name: "x"}) == f"{name}: limits.calls_max: expected a whole number, got 'x'"
    assert (
        refused(env={"KVMETA_SERVE_LIMIT_X": "1"})
        == "KVMETA_SERVE_LIMIT_X: limit_x: there is no such setting"
    )


@pytest.mark.parametrize("listen", ["[::1]:7400", "localhost:0", "127.0.0.9:65535"])
def test_loopback_addresses_do_not_need_insecure(listen: str) -> None:
    assert load(listen=listen).listen == listen


@pytest.mark.parametrize("listen", ["0.0.0.0:7400", "[::]:7400", "10.0.0.1:1", "example.org:7400"])
def test_an_address_that_others_reach_needs_insecure(listen: str) -> None:
    assert "say --insecure" in refused(listen=listen)
    assert load(listen=listen, insecure=True).listen == listen


@pytest.mark.parametrize(
    "listen",
    ["7400", ":7400", "host", "host:", "host:x", "127.0.0.1:65536", "a b:1", "[::1:1", "[x]:1", "::1:7400"],
)
def test_an_address_of_another_form_is_refused(listen: str) -> None:
    assert refused(listen=listen, insecure=True).startswith(f"--listen: expected HOST:PORT, got {listen!r}")


def test_an_ipv6_address_without_brackets_is_refused_with_the_remedy() -> None:
    assert refused(listen="::1:7400").endswith("an IPv6 address goes in brackets: [::1]:7400")


def test_smaller_batches_allow_smaller_messages() -> None:
    settings = load(None, "limits.batch_rows_max=100", "limits.message_bytes_max=100000")
    assert (settings.limits.batch_rows_max, settings.limits.message_bytes_max) == (100, 100_000)


def test_lookup_threads_default_to_one_per_core() -> None:
    assert load().threads.lookup_count >= 1
    assert load(None, "threads.lookup=3").threads.lookup_count == 3


@pytest.mark.parametrize(
    ("setting", "told"),
    [
        ("cluster.name=", "cluster.name"),
        ("cluster.name=a/b", "cluster.name"),
        ("cluster.write_quorum=1", "more than half of 3"),
        ("cluster.write_quorum=4", "at most all"),
        ("cluster.partitions=100", "power of two"),
        ("cluster.advertise=nowhere", "cluster.advertise"),
        ("cluster.advertise=0.0.0.0:7400", "--advertise HOST:PORT"),
        ("cluster.weight=0", "cluster.weight"),
        ("listen=127.0.0.1:0", "listen"),
    ],
)
def test_impossible_cluster_settings_are_refused(setting: str, told: str) -> None:
    with pytest.raises(InputError, match=told):
        config.load(None, {}, {"data": "x"}, ["cluster.name=prod", setting])


def test_a_node_advertises_its_listen_address_by_default() -> None:
    settings = config.load(None, {}, {"data": "x"}, ["cluster.name=prod", "listen=127.0.0.1:7411"])
    assert settings.cluster is not None
    assert settings.cluster.advertise == "127.0.0.1:7411"


@pytest.mark.parametrize("text", ["a = " + "[" * 100_000, "a = " + "9" * 5000], ids=["deep", "digits"])
def test_unparseable_toml_is_refused(toml: Any, text: str) -> None:
    assert "not TOML" in refused(toml(text))
