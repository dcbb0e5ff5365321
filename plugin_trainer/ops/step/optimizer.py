"""FusedAdamW: torch.optim.AdamW whose step also clips and averages, in one pass over memory."""

from __future__ import annotations

import functools
import math
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from itertools import chain
from operator import is_
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor
from torch.optim import optimizer as torch_optimizer

from plugin_trainer.ops import library
from plugin_trainer.ops.norm import joined
from plugin_trainer.ops.step import native, reference
from plugin_trainer.ops.step.inputs import (
    check_apart,
    check_gradient,
    check_memory,
    check_param,
    check_shadow,
    check_state,
    has_memory,
    is_dense,
    same_order,
    state_dtype,
)

_STATE = ("step", "exp_avg", "exp_avg_sq")
# Other ways of doing the same step. A state dict may carry any of them: they change no result.
_WAYS = {"foreach": None, "fused": None, "capturable": False, "differentiable": False}
# Other steps.
_VARIANTS = ("amsgrad", "maximize")


_Method = TypeVar("_Method", bound=Callable[..., Any])


def _eagerly(method: Callable[..., Any], *args: Any, **named: Any) -> Any:
    return torch.compiler.disable(method)(*args, **named)


_eagerly._torchdynamo_disable = True  # type: ignore[attr-defined]


def _breaks_graphs(method: _Method) -> _Method:
    """Under torch.compile the method runs by itself: traced tensors have no memory to plan with.

    Not `torch.compiler.disable`, which imports torch._dynamo wherever this file is imported.
    """

    @functools.wraps(method)
    def call(*args: Any, **named: Any) -> Any:
        if torch.compiler.is_compiling():
            return _eagerly(method, *args, **named)
        return method(*args, **named)

    return call  # type: ignore[return-value]


class _Plan(Protocol):
    def set_gradients(self, gradients: Sequence[Tensor | None]) -> None: ...
    def drop_gradients(self) -> None: ...
    def norm(self) -> Tensor: ...
    def check(self, *, zero_grads: bool) -> None: ...
    def apply(
        self, hyper: Tensor, norm: Tensor, *, max_norm: float, average: bool, zero_grads: bool
    ) -> None: ...


class FusedAdamW(torch.optim.AdamW):
    """torch.optim.AdamW with clipping by the norm of all gradients and a moving average.

    params, lr, betas, eps, weight_decay
                 as torch.optim.AdamW takes them. Parameters: float32, float64, bfloat16, float16
    max_norm     the gradients of all parameters together are scaled down to this norm; 0: not
    zero_grads   also set the gradients to zero, in the same pass; then `zero_grad` is not needed

    A step whose norm is not finite changes nothing and is not counted (zero_grads aside); on a
    device the host does not read the norm to know. Results equal clip_grad_norm_, AdamW and a
    moving average one after another up to rounding. The moments of 16-bit parameters are float32.

    grad_norm      the norm at the last step, before clipping: 0-dim, float64; NaN before the first
    average_decay  the decay of the attached average at the next step, in [0, 1]; None: it rests

    State dicts are those of torch.optim.AdamW, and can be loaded from it and into it. As with
    torch's optimizers, loading does not copy tensors that fit already. State tensors may be changed
    in place, and a parameter's state or a parameter of a group replaced; who puts another tensor
    into a parameter's state calls `load_state_dict`, or `forget_plans` after. `param.data = other`
    is followed too, also to another layout or dtype. Under torch.compile a step breaks the graph.

    A step that cannot be done raises ValueError, naming group and position, before anything is
    written: where a shape does not fit, memory was given back or two tensors share it.

    Raises ValueError for what it does not do: amsgrad, maximize, and the arguments that choose one
    of torch's implementations (foreach, fused, capturable, differentiable).
    """

    _plans: list[tuple[_Plan, list[int]]]  # each with the places of its parameters
    _planned: list[Tensor] | None  # all parameters, group after group
    _stateless: list[int]  # the places of those that have had no gradient yet
    _witness: tuple[list[int], list[Any]]  # what the plans were made for
    _inner_states: list[dict[str, Any]]  # the parameters' states then
    _doubtful: list[int]  # the places of parameters that `==` could take for one another
    _state_doubtful: list[int]  # the same among the states
    _averages: list[Tensor]  # the shadows
    _held: list[Tensor | None] | None  # the gradients that the plans hold
    _seen: Callable[[], Tensor | None]  # one of those that they let go of, if it is still there
    _stepped: list[Tensor]  # the parameters of those gradients
    _measured: bool  # a step is half done
    _hyper: tuple[list[tuple[float, ...]], Tensor]  # the settings of the groups at the last step

    def __init__(
        self,
        params: torch_optimizer.ParamsT,
        lr: float | Tensor = 1e-3,
        betas: tuple[float | Tensor, float | Tensor] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        amsgrad: bool = False,
        *,
        max_norm: float = 0.0,
        zero_grads: bool = False,
        maximize: bool = False,
        foreach: bool | None = None,
        capturable: bool = False,
        differentiable: bool = False,
        fused: bool | None = None,
    ) -> None:
        _refuse_options(
            "the constructor", amsgrad=amsgrad, maximize=maximize, foreach=foreach,
            capturable=capturable, differentiable=differentiable, fused=fused,
        )  # fmt: skip
        self.max_norm = _checked_max_norm(max_norm)
        self.zero_grads = zero_grads
        self.average_decay: float | None = None
        self.grad_norm = torch.full((), math.nan, dtype=torch.float64)
        self._shadow_of: dict[Tensor, Tensor] = {}
        self._keeps_grads = zero_grads
        self.forget_plans()
        super().__init__(params, lr, betas, eps, weight_decay)

    # The step.

    @_breaks_graphs
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step with `max_norm`, `average_decay`, `zero_grads`; returns the closure's loss."""
        given: tuple[Any, ...] = (self,) if closure is None else (self, closure)
        named: dict[str, Any] = {}
        for pre in chain(_global_hooks("pre"), self._optimizer_step_pre_hooks.values()):
            changed = pre(self, given, named)
            if changed is not None:
                if not (isinstance(changed, tuple) and len(changed) == 2):
                    raise RuntimeError(
                        f"a hook before the step returned {changed!r}; it must return None, or the "
                        "arguments: a tuple and a dict"
                    )
                given, named = changed
                closure = named.get("closure", given[1] if len(given) > 1 else None)
        loss = None
        with _recorded(self):
            if closure is not None:
                with torch.enable_grad():
                    loss = closure()
            with torch.no_grad():
                self._apply(
                    self._measure(), max_norm=self.max_norm, decay=self.average_decay,
                    zero_grads=self.zero_grads,
                )  # fmt: skip
            self._optimizer_step_code()  # by which torch's profilers know a step
        for post in chain(self._optimizer_step_post_hooks.values(), _global_hooks("post")):
            post(self, given, named)
        return loss

    # torch would wrap it, and record each step, for 15 us, also where no profiler looks.
    step.hooked = True  # type: ignore[attr-defined]

    @_breaks_graphs
    @torch.no_grad()
    def measure(self) -> Tensor:
        """Gathers the gradients and returns their norm, 0-dim float64: the first half of a step.

        Raises ValueError, naming the group and the position, if a gradient cannot be used.
        """
        return self._measure()

    def _measure(self) -> Tensor:
        self._gather()
        try:
            norms = [plan.norm() for plan, _ in self._plans]
        except RuntimeError:  # a held gradient is not what it was
            self._renew()
            norms = [plan.norm() for plan, _ in self._plans]
        self.grad_norm = joined(norms)
        self._measured = True
        return self.grad_norm

    @_breaks_graphs
    def apply(
        self,
        norm: Tensor,
        *,
        max_norm: float | None = None,
        decay: float | None = None,
        zero_grads: bool | None = None,
    ) -> None:
        """The second half: steps with the gradients that `measure` gathered and with this norm.

        norm        0-dim float64; if it is not finite, nothing is written
        max_norm    in place of the attribute; 0: no clipping
        decay       of the attached average; None: it rests
        zero_grads  in place of the attribute

        This is a step: its hooks run, and schedulers take it for one.
        """
        for pre in chain(_global_hooks("pre"), self._optimizer_step_pre_hooks.values()):
            pre(self, (self,), {})
        with _recorded(self), torch.no_grad():
            self._apply(
                norm,
                max_norm=self.max_norm if max_norm is None else _checked_max_norm(max_norm),
                decay=decay,
                zero_grads=self.zero_grads if zero_grads is None else zero_grads,
            )
        self._opt_called = True  # what torch's schedulers look for to know that a step was taken
        for post in chain(self._optimizer_step_post_hooks.values(), _global_hooks("post")):
            post(self, (self,), {})

    def _apply(
        self, norm: Tensor, *, max_norm: float, decay: float | None, zero_grads: bool
    ) -> None:
        if not self._measured:
            raise ValueError("there is nothing to apply; call measure() first, then apply(norm)")
        if norm.dtype != torch.float64 or norm.numel() != 1:
            raise ValueError(
                f"norm is {norm.dtype} of shape {tuple(norm.shape)}; give what measure() returned"
            )
        if decay is not None:
            if not self._shadow_of:
                raise ValueError(f"decay is {decay}, but there is no average; attach_average first")
            if not 0.0 <= decay <= 1.0:
                raise ValueError(f"decay is {decay}; it must be between 0 and 1")
        rows = [_hyper_row(group, decay) for group in self.param_groups]
        if rows != self._hyper[0]:
            self._hyper = rows, torch.tensor(rows, dtype=torch.float64)
        hyper = self._hyper[1]

        def apply() -> None:
            for plan, _ in self._plans:
                plan.apply(
                    hyper, norm, max_norm=max_norm, average=decay is not None, zero_grads=zero_grads
                )

        if len(self._plans) > 1:  # none of them may be applied where another cannot be
            self._check_plans(zero_grads)
            apply()
        else:
            try:
                apply()
            except RuntimeError:  # before anything was written
                self._check_plans(zero_grads)
                apply()
        # So that autograd notices a backward through what has changed since. 45 ns a tensor.
        torch.autograd.graph.increment_version(self._stepped)
        if decay is not None:
            torch.autograd.graph.increment_version(self._averages)
        self._keeps_grads = zero_grads or self._keeps_grads
        if not self._keeps_grads:
            self._see_a_gradient()
            self._drop_gradients()
        self._measured = False

    def zero_grad(self, set_to_none: bool = True) -> None:
        """As torch's. With set_to_none=False the gradients are held from step to step."""
        self._keeps_grads = not set_to_none
        if set_to_none:
            self._drop_gradients()
        super().zero_grad(set_to_none)

    # The average.

    def attach_average(self, shadow_of: Mapping[Tensor, Tensor]) -> None:
        """From now on a step moves these averages too, when it is given a decay.

        shadow_of  for each parameter to average its shadow, float32 (float64 for float64), of the
                   same shape and device; in place of those attached before. {} takes them off

        A parameter without a gradient is averaged too: it only did not move. Raises ValueError if a
        shadow does not fit or if a parameter is not in this optimizer.
        """
        places = {param: place for place, param in self._places()}
        for param, shadow in shadow_of.items():
            if param not in places:
                raise ValueError(
                    f"a shadow of shape {tuple(shadow.shape)} is for a parameter that is not in "
                    "this optimizer"
                )
            check_shadow(f"the shadow of {places[param]}", shadow, param)
        check_apart(
            [(f"the shadow of {places[param]}", shadow) for param, shadow in shadow_of.items()],
            [(name, param) for param, name in places.items()],
        )
        self._shadow_of = dict(shadow_of)
        self.forget_plans()

    # Plans: the tensors of one device, as the kernels know them. Made at the first step and when
    # the set of tensors has changed.

    def forget_plans(self) -> None:
        """Looks at all parameters and states anew at the next step."""
        self._plans = []
        self._planned = None
        self._stateless = []
        self._witness = ([], [])
        self._inner_states = []
        self._doubtful = []
        self._state_doubtful = []
        self._averages = []
        self._held = None
        self._seen = _nothing
        self._stepped = []
        self._measured = False
        self._hyper = [], torch.empty(0)

    def _gather(self) -> None:
        if self._planned is None or not self._is_current():
            self._plan()
        assert self._planned is not None
        gradients = [param.grad for param in self._planned]
        if self._held is not None and _are_the_same(self._held, gradients, self._doubtful):
            return
        # Gradients that stay from step to step are held: to give 2,000 of them takes 0.5 ms. New
        # ones are let go of after the step, so that their memory can be used.
        seen = self._seen()
        self._keeps_grads = seen is not None and any(seen is gradient for gradient in gradients)
        self._take(gradients)

    def _take(self, gradients: list[Tensor | None]) -> None:
        """Gives the plans these gradients, one for each parameter."""
        fresh = [place for place in self._stateless if gradients[place] is not None]
        if fresh:
            for place in fresh:
                self._create_state(place)
            self._plan()
        assert self._planned is not None
        try:
            self._set_gradients(gradients)
        except RuntimeError:  # they fit their parameters, but these are not what they were
            self._plan()
            self._set_gradients(gradients)
        self._held = gradients
        self._stepped = [
            param
            for param, gradient in zip(self._planned, gradients, strict=True)
            if gradient is not None
        ]

    def _renew(self) -> None:
        """Makes the plans anew, with the gradients that they hold: a tensor is not what it was.

        Raises ValueError, naming the group and the position, if it does not fit any more.
        """
        gradients, planned, measured = self._held, self._planned, self._measured
        assert gradients is not None and planned is not None
        params = [param for _, param in self._places()]
        if len(params) != len(planned) or not all(map(is_, params, planned)):
            raise ValueError("the parameters are not those of measure(); call it again")
        self._plan()
        self._take(gradients)
        self._measured = measured

    def _check_plans(self, zero_grads: bool) -> None:
        """Raises ValueError, naming the group and the position, for what no plan could step."""
        try:
            for plan, _ in self._plans:
                plan.check(zero_grads=zero_grads)
        except RuntimeError:
            self._renew()
            try:
                for plan, _ in self._plans:
                    plan.check(zero_grads=zero_grads)
            except RuntimeError as error:
                self._check_tensors(zero_grads=zero_grads)
                raise ValueError(str(error)) from error

    def _check_tensors(self, *, zero_grads: bool = False) -> None:
        """Says in words, with group and position, why no plan can be made of these tensors."""
        gradients = self._held
        changed: list[tuple[str, Tensor]] = []
        read: list[tuple[str, Tensor]] = []
        for place, (name, param) in enumerate(self._places()):
            check_param(name, param)
            changed.append((name, param))
            state = self.state.get(param) or {}
            for key in ("exp_avg", "exp_avg_sq"):
                if key in state:
                    check_state(f"the {key} of {name}", state[key], param)
            changed += [(f"the {key} of {name}", state[key]) for key in _STATE if key in state]
            shadow = self._shadow_of.get(param)
            if shadow is not None:
                check_shadow(f"the shadow of {name}", shadow, param)
                changed.append((f"the shadow of {name}", shadow))
            gradient = None if gradients is None else gradients[place]
            if gradient is not None:
                check_gradient(f"the gradient of {name}", gradient, param)
                (changed if zero_grads else read).append((f"the gradient of {name}", gradient))
        for name, tensor in (*changed, *read):
            check_memory(name, tensor)
        check_apart(changed, read)

    def _set_gradients(self, gradients: list[Tensor | None]) -> None:
        try:
            for plan, places in self._plans:
                if isinstance(plan, reference.Plan):
                    self._check_gradients(gradients)
                plan.set_gradients([gradients[place] for place in places])
        except RuntimeError:
            self._held = None
            self._check_gradients(gradients)  # says it with the parameter's group and position
            raise

    def _check_gradients(self, gradients: list[Tensor | None]) -> None:
        for (name, param), gradient in zip(self._places(), gradients, strict=True):
            if gradient is not None:
                check_gradient(f"the gradient of {name}", gradient, param)
                check_memory(f"the gradient of {name}", gradient)

    def _see_a_gradient(self) -> None:
        if self._held is not None:
            first = next((gradient for gradient in self._held if gradient is not None), None)
            self._seen = _nothing if first is None else weakref.ref(first)

    def _drop_gradients(self) -> None:
        if self._held is not None:
            self._held = None
            for plan, _ in self._plans:
                plan.drop_gradients()

    def _places(self) -> list[tuple[str, Tensor]]:
        return [
            (f"parameter {i} of group {g}", param)
            for g, group in enumerate(self.param_groups)
            for i, param in enumerate(group["params"])
        ]

    def _is_current(self) -> bool:
        """Whether the plans hold what the optimizer holds: 20 us for 2,000 parameters."""
        assert self._planned is not None
        counts, things = self._witness
        return (
            counts == self._counts()
            and all(map(is_, things, self._things()))
            and _are_the_same(self._planned, list(self._params()), self._doubtful)
            and _are_the_same(self._inner_states, list(self.state.values()), self._state_doubtful)
        )

    def _counts(self) -> list[int]:
        return [len(self.state), *(len(group["params"]) for group in self.param_groups)]

    def _things(self) -> list[Any]:
        """The state as a whole, and, as they cost nothing, the tensors of the first parameter's."""
        first = next(iter(self.state.values()), None)
        # What is no tensor's may be anything.
        return [self.state, *(first.get(key) for key in _STATE if isinstance(first, dict))]

    def _params(self) -> Iterable[Tensor]:
        return chain.from_iterable([group["params"] for group in self.param_groups])

    def _create_state(self, place: int) -> None:
        name, param = self._places()[place]
        gradient = param.grad
        assert gradient is not None
        check_gradient(f"the gradient of {name}", gradient, param)
        dtype = state_dtype(param.dtype)
        self.state[param] = {
            "step": torch.zeros((), dtype=torch.float32, device=param.device),
            "exp_avg": torch.zeros_like(param, dtype=dtype, memory_format=torch.preserve_format),
            "exp_avg_sq": torch.zeros_like(param, dtype=dtype, memory_format=torch.preserve_format),
        }

    def _adopt_state(self, place: int) -> None:
        """Brings a state that came from elsewhere into the form that the kernels want."""
        assert self._planned is not None
        param = self._planned[place]
        state = self.state[param]
        missing = [key for key in _STATE if key not in state]
        if missing or any(
            state[key].shape != param.shape or not has_memory(state[key]) for key in _STATE[1:]
        ):
            name, _ = self._places()[place]
            if missing:
                raise ValueError(f"the state of {name} has no {missing[0]!r}")
            for key in _STATE[1:]:
                check_memory(f"the {key} of {name}", state[key])
                check_state(f"the {key} of {name}", state[key], param)
        state["step"] = state["step"].to(dtype=torch.float32, device=param.device).reshape(())
        for key in ("exp_avg", "exp_avg_sq"):
            fit = state[key].to(dtype=state_dtype(param.dtype), device=param.device)
            if is_dense(param) and not (is_dense(fit) and same_order(fit, param)):
                fit = torch.empty_like(param, dtype=fit.dtype).copy_(fit)
            state[key] = fit

    def _plan(self) -> None:
        self.forget_plans()
        self._planned = list(self._params())
        groups = [g for g, group in enumerate(self.param_groups) for _ in group["params"]]
        parts: dict[tuple[torch.device, bool], list[int]] = {}
        for place, param in enumerate(self._planned):
            if self.state.get(param):
                self._adopt_state(place)
            else:
                self._stateless.append(place)
            compiled = library.has_kernels_for(param.device.type) and self._is_for_kernels(param)
            parts.setdefault((param.device, compiled), []).append(place)
        nothing = torch.empty(0)
        for (_, compiled), places in parts.items():
            params = [self._planned[place] for place in places]
            states = [self.state.get(param) or {} for param in params]
            make: type[native.Plan] | type[reference.Plan] = (
                native.Plan if compiled else reference.Plan
            )
            try:
                plan = make(
                    params,
                    [state.get("exp_avg", nothing) for state in states],
                    [state.get("exp_avg_sq", nothing) for state in states],
                    [state.get("step", nothing) for state in states],
                    [self._shadow_of.get(param, nothing) for param in params]
                    if self._shadow_of
                    else [],
                    [groups[place] for place in places],
                )
            except RuntimeError as error:
                self._check_tensors()
                raise ValueError(str(error)) from error
            self._plans.append((plan, places))
        if any(isinstance(plan, reference.Plan) for plan, _ in self._plans):
            self._check_tensors()  # the kernels' plans have looked at theirs
        self._doubtful = _doubtful(self._planned)
        self._state_doubtful = _doubtful(list(self.state))
        self._witness = self._counts(), self._things()
        self._inner_states = list(self.state.values())
        self._averages = list(self._shadow_of.values())

    def _is_for_kernels(self, param: Tensor) -> bool:
        shadow = self._shadow_of.get(param)
        if param.is_neg():
            return False  # its memory holds the opposite
        return is_dense(param) and (
            shadow is None
            or (shadow.shape == param.shape and is_dense(shadow) and same_order(shadow, param))
        )

    # What torch's optimizers offer besides the step.

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """As torch's; refuses, by group and position, parameters that cannot be stepped."""
        _refuse_options(
            f"group {len(self.param_groups)}",
            **{key: param_group.get(key) for key in (*_VARIANTS, *_WAYS)},
        )
        super().add_param_group(param_group)
        self.forget_plans()
        group = len(self.param_groups) - 1
        try:
            for i, param in enumerate(self.param_groups[-1]["params"]):
                name = f"parameter {i} of group {group}"
                check_param(name, param)
                if torch.utils._python_dispatch.is_traceable_wrapper_subclass(param):
                    raise ValueError(
                        f"{name} is a {type(param).__name__}, not a plain tensor; "
                        "use torch.optim.AdamW"
                    )
        except ValueError:
            del self.param_groups[-1]
            raise

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As torch's; from any AdamW. Keeps float32 moments of 16-bit parameters as they are."""
        seen: dict[str, Any] = {}

        def look(_: torch.optim.Optimizer, loaded: dict[str, Any]) -> None:
            for g, group in enumerate(loaded["param_groups"]):
                _refuse_options(f"group {g}", **{key: group.get(key) for key in _VARIANTS})
            seen.update(loaded)

        def keep(_: torch.optim.Optimizer) -> None:
            self._keep_loaded(seen)

        hooks = (
            self.register_load_state_dict_pre_hook(look),
            self.register_load_state_dict_post_hook(keep, prepend=True),
        )
        try:
            super().load_state_dict(state_dict)
        finally:
            for hook in hooks:
                hook.remove()

    def _keep_loaded(self, loaded: dict[str, Any]) -> None:
        # torch casts a state to its parameter's dtype: 16 bits are too few for it.
        indices: Iterable[Any] = chain.from_iterable(g["params"] for g in loaded["param_groups"])
        for index, (_, param) in zip(indices, self._places(), strict=True):
            saved = loaded["state"].get(index)
            if saved and param.dtype in (torch.bfloat16, torch.float16):
                for key in ("exp_avg", "exp_avg_sq"):
                    self.state[param][key] = saved[key].to(dtype=torch.float32, device=param.device)

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self.forget_plans()
        for group in self.param_groups:
            group.update(_WAYS)

    def __getstate__(self) -> dict[str, Any]:
        return {
            **super().__getstate__(),
            "max_norm": self.max_norm,
            "zero_grads": self.zero_grads,
            "average_decay": self.average_decay,
            "grad_norm": self.grad_norm,
            "_shadow_of": self._shadow_of,
            "_keeps_grads": self._keeps_grads,
        }


def _are_the_same(some: list[Any], others: list[Any], doubtful: list[int]) -> bool:
    """Whether two lists hold the very same objects: 1 us for 2,000, one by one it would be 30.

    Lists compare by `is` before they ask for `==`, and so ask at the first other object only. Two
    tensors of several elements are never found equal: there it raises.

    doubtful  the places of things that may be equal and not the same
    """
    if len(some) != len(others) or (some and some[0] is not others[0]):
        return False
    try:
        return some == others and all(some[place] is others[place] for place in doubtful)
    except Exception:
        return False


def _doubtful(params: list[Any]) -> list[int]:
    """Where a gradient or a state can equal another: of one element, or of an unknown class."""
    return [
        place
        for place, param in enumerate(params)
        if type(param) not in (Tensor, torch.nn.Parameter) or param.numel() < 2
    ]


def _nothing() -> None:
    return None


def _recorded(optimizer: torch.optim.Optimizer) -> AbstractContextManager[object]:
    """Under a profiler, the record that torch makes of every optimizer's `step`."""
    if not torch.autograd._profiler_enabled():
        return nullcontext()
    name = f"Optimizer.step#{type(optimizer).__name__}.step"
    return torch.autograd.profiler.record_function(name)


def _global_hooks(kind: str) -> Iterable[Any]:
    hooks: dict[int, Any] = getattr(torch_optimizer, f"_global_optimizer_{kind}_hooks", {})
    return hooks.values()


def _hyper_row(group: dict[str, Any], decay: float | None) -> tuple[float, ...]:
    beta1, beta2 = group["betas"]
    return (
        float(group["lr"]),
        float(beta1),
        float(beta2),
        float(group["eps"]),
        float(group["weight_decay"]),
        1.0 if decay is None else decay,
    )


def _refuse_options(where: str, **options: Any) -> None:
    for name, value in options.items():
        if value:
            instead = (
                "torch.optim.AdamW has it" if name in _VARIANTS else "it has one implementation"
            )
            raise ValueError(f"FusedAdamW cannot do {name}={value!r} (in {where}): {instead}")


def _checked_max_norm(max_norm: float) -> float:
    if not max_norm >= 0.0:
        raise ValueError(f"max_norm is {max_norm}; it must be 0 (no clipping) or more")
    return float(max_norm)
