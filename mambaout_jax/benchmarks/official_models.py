# SPDX-License-Identifier: Apache-2.0
"""The authors' own PyTorch models with their plain scan, from a checkout that the user gives.

The scans that the authors train with are CUDA kernels. Beside them each repository has one in plain
PyTorch, `selective_scan_torch` in VMamba and `selective_scan_ref` in Vim, which runs everywhere and
is what takes part here. What their files import and this does without, kernels, tools for language
models and for counting, is stood in for while they are imported.
"""

import contextlib
import functools
import importlib
import importlib.util
import re
import sys
import types
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mambaout_jax.benchmarks.timing import first_line
from mambaout_jax.benchmarks.torch_models import Peer
from mambaout_jax.paths import local_path

_VIM = "vim_{}_patch16_224_bimambav2_final_pool_mean_abs_pos_embed_with_midclstok_div2"


class _Repository(NamedTuple):
    """Attributes:
    address: where it is, with the commit that this file was written for.
    files: what a checkout is known by.
    models: our names, and those of the functions that make the models there.
    load: from the checkout to the module that has these functions.
    make: from one of them and the side of the images to the model.
    """

    address: str
    files: tuple[str, ...]
    models: Mapping[str, str]
    load: Callable[[Path], Any]
    make: Callable[[Callable[..., Any], int], Any]


def official_model(folder: Path | str, name: str, image_size: int) -> Peer:
    """A model of the authors' code with random weights, without stochastic depth.

    Args:
        folder: checkout of the family's repository.
        name: one of `list_models()`.
        image_size: side of its images in pixels.

    Raises:
        ValueError: as `check_checkout`.
    """
    family = next(key for key, found in REPOSITORIES.items() if name in found.models)
    repository = REPOSITORIES[family]
    module = check_checkout(family, folder)
    model = repository.make(getattr(module, repository.models[name]), image_size)
    return Peer("official", model, functools.partial(_published_names, name))


def check_checkout(family: str, folder: Path | str) -> Any:
    """Imports the authors' models, once.

    Args:
        family: a key of `REPOSITORIES`.
        folder: checkout of its repository.

    Returns:
        The module that makes them.

    Raises:
        ValueError: no such family, no such checkout, or it cannot be imported.
    """
    if family not in REPOSITORIES:
        raise ValueError(
            f"official={family}={folder}: no official code of {family!r} can take part; that of "
            f"{' and '.join(REPOSITORIES)} can"
        )
    folder, repository = local_path(folder).absolute(), REPOSITORIES[family]
    missing = [file for file in repository.files if not (folder / file).is_file()]
    if missing:
        raise ValueError(
            f"official={family}={folder}: there is no {missing[0]} in it; give a checkout of "
            f"{repository.address}"
        )
    return _load(family, folder)


@functools.cache
def _load(family: str, folder: Path) -> Any:
    repository = REPOSITORIES[family]
    try:
        for package in ("torch", "timm"):
            importlib.import_module(package)
    except ImportError as error:
        raise _missing(family, error) from error
    try:
        return repository.load(folder)
    except ImportError as error:
        raise _missing(family, error) from error
    except Exception as error:  # of the authors' code, where it is another commit or torch too new
        raise ValueError(
            f"official={family}={folder} cannot be imported: {type(error).__name__}: "
            f"{first_line(error)}; give a checkout of {repository.address}"
        ) from error


def _missing(family: str, error: ImportError) -> ValueError:
    return ValueError(
        f"the official code of {family} needs a package that is not there: {error}; pip install "
        "torch timm einops"
    )


@contextlib.contextmanager
def _importing(
    folders: Sequence[Path], packages: Sequence[str], stand_ins: Mapping[str, Any]
) -> Iterator[None]:
    """Inside it, modules are found in `folders` first, and stand-ins take the place of others.

    Behind it `sys.modules` and `sys.path` are as before, so that nothing else in the process finds
    them: not torch, which looks for triton, nor another version of mamba_ssm.

    Args:
        packages: names of the modules and packages in the folders.
        stand_ins: modules by their full names.
    """

    def taken():
        return [
            name for name in sys.modules if name in stand_ins or name.partition(".")[0] in packages
        ]

    before = {name: sys.modules.pop(name) for name in taken()}
    sys.modules.update(stand_ins)
    sys.path[:0] = map(str, folders)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of names that torch and timm have renamed since
            yield
    finally:
        for name in taken():
            del sys.modules[name]
        sys.modules.update(before)
        for folder in folders:
            sys.path.remove(str(folder))


def _stand_in(name: str, **attributes: Any) -> types.ModuleType:
    module = types.ModuleType(name)
    vars(module).update(attributes)
    return module


def _load_vmamba(folder: Path) -> Any:
    tools = ("FlopCountAnalysis", "flop_count_str", "flop_count", "parameter_count")
    stand_ins = {
        "fvcore": _stand_in("fvcore"),
        "fvcore.nn": _stand_in("fvcore.nn", **dict.fromkeys(tools)),
    }
    if importlib.util.find_spec("triton") is None:  # its kernels are for GPUs, but always defined
        language = _stand_in("triton.language", tensor=None, constexpr=None)
        stand_ins["triton.language"] = language
        stand_ins["triton"] = _stand_in("triton", jit=lambda kernel: kernel, language=language)
    with _importing([folder], ["vmamba"], stand_ins):
        module = importlib.import_module("vmamba")
    module.WITH_SELECTIVESCAN_MAMBA = False  # the plain scan, also where the kernels are built
    return module


def _make_vmamba(function: Callable[..., Any], image_size: int) -> Any:
    model = function()
    for module in model.modules():
        if hasattr(module, "drop_prob"):  # stochastic depth, whose rate the function does not take
            module.drop_prob = 0.0
    return model


def _load_vim(folder: Path) -> Any:
    torch = importlib.import_module("torch")
    norm, inner = _plain_norm(torch), "mamba_inner_fn_no_out_proj"
    stand_ins = {
        "selective_scan_cuda": _stand_in("selective_scan_cuda"),
        "causal_conv1d": _stand_in(
            "causal_conv1d", causal_conv1d_fn=None, causal_conv1d_update=None
        ),
        "mamba_ssm.ops.triton.layer_norm": norm,
        "mamba_ssm.ops.triton.selective_state_update": _stand_in(
            "selective_state_update", selective_state_update=None
        ),
        "mamba_ssm.utils.generation": _stand_in("generation", GenerationMixin=object),
        "mamba_ssm.utils.hf": _stand_in("hf", load_config_hf=None, load_state_dict_hf=None),
    }
    folders = [folder / "vim", folder / "mamba-1p1p1"]
    with _importing(folders, ["models_mamba", "rope", "mamba_ssm"], stand_ins):
        models = importlib.import_module("models_mamba")
        mixer = importlib.import_module("mamba_ssm.modules.mamba_simple")
        scan = importlib.import_module("mamba_ssm.ops.selective_scan_interface")
    if not hasattr(mixer, inner):
        raise AttributeError(f"mamba_simple.py does not use {inner}")
    setattr(mixer, inner, _plain_inner(torch, scan.selective_scan_ref))
    return models


def _make_vim(function: Callable[..., Any], image_size: int) -> Any:
    return function(img_size=image_size, drop_path_rate=0.0)


def _plain_norm(torch: Any) -> Any:
    """What Vim takes from mamba_ssm's norms in Triton: norms of a sum that is handed on."""

    class RMSNorm(torch.nn.RMSNorm):
        bias = None

    def rms_norm_fn(
        x, weight, bias, residual=None, prenorm=False, residual_in_fp32=False, eps=1e-6
    ):
        total = x if residual is None else x + residual
        if residual_in_fp32:
            total = total.float()
        y = torch.nn.functional.rms_norm(total, weight.shape, weight, eps).to(x.dtype)
        return (y, total) if prenorm else y

    return _stand_in("layer_norm", RMSNorm=RMSNorm, rms_norm_fn=rms_norm_fn, layer_norm_fn=None)


def _plain_inner(torch: Any, selective_scan: Callable[..., Any]) -> Callable[..., Any]:
    """Of Vim's fused function of one direction the steps, one by one.

    Args:
        selective_scan: `selective_scan_ref` of the checkout.
    """
    functional = torch.nn.functional

    def inner(
        xz, conv_weight, conv_bias, x_proj, dt_proj, A, B, C, D, delta_bias, delta_softplus
    ):  # B and C are None: they depend on x
        x, z = xz.chunk(2, dim=1)  # (B, D, L)
        D_inner, L, K = x.shape[1], x.shape[2], conv_weight.shape[-1]
        x = functional.conv1d(x, conv_weight, conv_bias, padding=K - 1, groups=D_inner)
        x = functional.silu(x[..., :L])
        R, N = dt_proj.shape[1], A.shape[1]
        parts = functional.linear(x.transpose(1, 2), x_proj).split((R, N, N), dim=-1)  # (B, L, _)
        delta, B, C = functional.linear(parts[0], dt_proj), *parts[1:]
        delta, B, C = (part.transpose(1, 2) for part in (delta, B, C))  # (B, D, L), (B, N, L)
        return selective_scan(
            x, delta, A, B, C, D, z=z, delta_bias=delta_bias, delta_softplus=delta_softplus
        )

    return inner


def _published_names(name: str, state_dict: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The names of published files, where the code at hand has later ones: VMamba's single file."""
    if name not in REPOSITORIES["vmamba"].models:
        return dict(state_dict)
    renamed = {}
    for key, value in state_dict.items():
        if match := re.fullmatch(r"(.*\.op\.(?:x_proj|dt_projs))\.weight", key):
            key, value = f"{match[1]}_weight", value.reshape(_PATHS, -1, value.shape[-1])
        if name.startswith("vmamba_v0"):
            key = key.replace("downsample.1.", "downsample.norm.")
            key = key.replace("downsample.2.", "downsample.reduction.")
        renamed[key] = value
    return renamed


_PATHS = 4  # of VMamba's scan over a map
REPOSITORIES = {
    "vmamba": _Repository(
        "github.com/MzeroMiko/VMamba at 2ed52ea",
        ("vmamba.py",),
        {
            "vmamba_v9_tiny": "vmamba_tiny_s2l5",
            "vmamba_v9_small": "vmamba_small_s2l15",
            "vmamba_v9_base": "vmamba_base_s2l15",
            "vmamba_v0_tiny": "vanilla_vmamba_tiny",
            "vmamba_v0_small": "vanilla_vmamba_small",
            "vmamba_v0_base": "vanilla_vmamba_base",
        },
        _load_vmamba,
        _make_vmamba,
    ),
    "vim": _Repository(
        "github.com/hustvl/Vim at dd0358a",
        ("vim/models_mamba.py", "mamba-1p1p1/mamba_ssm/modules/mamba_simple.py"),
        {f"vim_{size}": _VIM.format(size) for size in ("tiny", "small")},
        _load_vim,
        _make_vim,
    ),
}
