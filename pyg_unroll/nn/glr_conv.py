"""Unrolled conjugate gradients on the graph Laplacian regulariser."""

from collections.abc import Iterator
from typing import Any

from torch import Tensor

from pyg_unroll.checks import check_choice
from pyg_unroll.nn.smoothness_conv import Problem, Run, SmoothnessConv
from pyg_unroll.ops.cg import LaplacianSystem, cg_iterates, cg_steps


class GLRConv(SmoothnessConv):
    r"""Interpolates or smooths a signal by unrolled conjugate gradients on
    the graph Laplacian regulariser (GLR), from the `"Interpretable
    Lightweight Transformer via Unrolling of Learned Graph Smoothness Priors"
    <https://arxiv.org/abs/2406.04090>`_ paper.

    Under :meth:`torch.compile` no values are checked: give a
    :class:`~pyg_unroll.graph.Topology`, which checks its edges where it is
    built, and see that weights are symmetric, finite and non-negative, and
    signals finite.

    With a mask and :obj:`fidelity='hard'`, known entries :math:`y` are held
    and the layer approaches

    .. math::
        \mathbf{x}^{\prime} = \arg\min_{\mathbf{z}} \mathbf{z}^{\top}
        \mathbf{L} \mathbf{z} \quad \textrm{s.t.} \quad
        \mathbf{z}_{\textrm{known}} = \mathbf{y}, \qquad
        \mathbf{z}^{\top} \mathbf{L} \mathbf{z} = \sum_{\{i,j\}} w_{ij}
        (z_i - z_j)^2.

    Without a mask, or with :obj:`fidelity='soft'`, known entries are noisy
    observations of confidence :math:`c_i` (one by default, zero where
    unknown) and the layer approaches the proximal step

    .. math::
        \mathbf{x}^{\prime} = \arg\min_{\mathbf{z}} \sum_i c_i (z_i - x_i)^2
        + \mu \mathbf{z}^{\top} \mathbf{L} \mathbf{z}.

    Either way it takes :math:`K` steps with the Jacobi-preconditioned system
    matrix :math:`\mathbf{A}` and learned :math:`\alpha_k, \beta_k`:

    .. math::
        \mathbf{v}_k = \mathbf{D}^{-1} \mathbf{r}_k + \beta_k
        \mathbf{v}_{k-1}, \quad
        \mathbf{x}_{k+1} = \mathbf{x}_k + \alpha_k \mathbf{v}_k, \quad
        \mathbf{r}_{k+1} = \mathbf{r}_k - \alpha_k \mathbf{A} \mathbf{v}_k.

    They start as Chebyshev coefficients, so that the untrained layer already
    converges. Its receptive field is :math:`K` hops. Options after
    :obj:`heads` are given by keyword.

    Args:
        num_steps (int): Number of steps :math:`K`.
        heads (int, optional): Number of graphs :math:`H` used in parallel,
            whose results are averaged with learned weights that sum to one.
            (default: :obj:`1`)
        fidelity (str, optional): :obj:`'hard'` or :obj:`'soft'`; without a
            mask there is no difference. (default: :obj:`'hard'`)
        mu (float, optional): Initial weight :math:`\mu` of the prior, learned
            per head; unused where known entries are held.
            (default: :obj:`1.0`)
        order (int, optional): :obj:`2` replaces the prior by
            :math:`\| \mathbf{D}_w^{-1/2} \mathbf{L} \mathbf{z} \|^2`, under
            which smooth signals have no kinks at known entries; each step
            then reaches two hops. (default: :obj:`1`)
        spectrum (tuple[float, float], optional): Interval of eigenvalues of
            :math:`\mathbf{D}^{-1} \mathbf{A}` that the initial coefficients
            are made for. (default: :math:`(1 / \max(K, 2), 2)`, and
            :math:`(1 / \max(K, 2), 4)` for :obj:`order=2`)
        checkpoint (bool, optional): Keep nothing of the steps for the
            derivative but their start, and run them again instead: less
            memory for about one third more time. (default: :obj:`False`)
        validate_args (bool, optional): Check the values of the inputs: finite
            signal, non-negative and symmetric weights. Costs a pass over the
            edges and, on CUDA, a synchronisation. (default: :obj:`True`)

    Shapes:
        - **input:**
          node signals :math:`(|\mathcal{V}|, F)` or, of several samples on
          one graph, :math:`(B, |\mathcal{V}|, F)`,
          undirected edge indices :math:`(2, |\mathcal{E}|)` or any layout
          that :func:`~pyg_unroll.graph.resolve_graph` takes,
          symmetric edge weights :math:`(|\mathcal{E}|)` or
          :math:`(|\mathcal{E}|, H)`, or of each sample
          :math:`(B, |\mathcal{E}|, H)` *(optional)*,
          mask, True where known, :math:`(|\mathcal{V}|)`,
          :math:`(|\mathcal{V}|, F)` or :math:`(B, |\mathcal{V}|, F)`
          *(optional)*
        - **output:** node signals of the shape of the input

    Raises:
        ValueError: If an argument has a wrong shape, type or value; the
            message says how to mend it.
    """

    def __init__(
        self, num_steps: int, heads: int = 1, *, order: int = 1, **kwargs: Any
    ) -> None:
        check_choice('order', order, (1, 2))
        super().__init__(num_steps, 2.0**order, heads, **kwargs)
        self.order = order
        self._add_coefficients()
        self.reset_parameters()

    @property
    def receptive_field(self) -> int:
        """Number of hops from which an entry can matter."""
        return self.num_steps * self.order

    def _run(self, problem: Problem) -> Run:
        if problem.state is not None:
            raise ValueError(
                f"'state' must be None: the layer has no state (got "
                f"'{type(problem.state).__name__}'); start it from "
                f"'warm_start'"
            )
        return _ConjugateGradients(self, problem)

    def __repr__(self) -> str:
        return (
            f'{self.__class__.__name__}(num_steps={self.num_steps}, '
            f'heads={self.heads}, fidelity={self.fidelity!r})'
        )


class _ConjugateGradients:
    """The steps of a layer on a problem."""

    def __init__(self, layer: GLRConv, problem: Problem) -> None:
        signal, topology, weight, start, _ = problem
        scale = None
        if signal.confidence is not None:
            scale = signal.confidence * signal.tile((-layer.log_mu).exp())
        self.system = LaplacianSystem.build(
            topology, weight, scale, signal.free, layer.order
        )
        b = None if scale is None else scale * signal.x
        self.operands = start, b, *layer._read_coefficients(signal)
        self.checkpoint = layer.checkpoint

    def finish(self) -> Tensor:
        return cg_steps(self.system, *self.operands, self.checkpoint)

    def steps(self) -> Iterator[Tensor]:
        yield self.operands[0]
        yield from cg_iterates(self.system, *self.operands)

    def state(self) -> None:
        return None
