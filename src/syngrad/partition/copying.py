class Copier:
    """Copies nodes into a graph of their own.

    Attributes get flat names there, so that no shell modules are needed and the user's modules are never written to.
    """

    def __init__(self, trace: Trace) -> None:
        self._trace = trace
        self._graph = fx.Graph()
        self._made: dict[fx.Node, fx.Node] = {}
        self._keys: dict[str, str] = {}
        self._root: dict[str, Any] = {}
        self.homes: dict[str, tuple[nn.Module, str]] = {}

    def receive(self, node: fx.Node) -> None:
        arrived = self._graph.placeholder(node.name)
        if node.op != "placeholder" and _is_shape(node):
            arrived = self._graph.call_function(torch.Size, (arrived,))
        self._made[node] = arrived

    def measure(self, node: fx.Node, tensor: fx.Node, dim: int) -> None:
        self._made[node] = self._graph.call_function(torch.ops.aten.sym_size.int, (self._made[tensor], dim))

    def copy(self, node: fx.Node) -> None:
        for given in node.all_input_nodes:
            self._fetch(given)
        made = self._graph.node_copy(node, self._made.__getitem__)
        made.meta = {}
        if node.op == "call_module":
            made.target = self._key(str(node.target), self.find_module(str(node.target)))
        self._made[node] = made

    def send(self, nodes: Sequence[fx.Node]) -> None:
        # torch.Size is no pytree: as a tuple its integers are leaves of the message like any other.
        sent = [
            self._graph.call_function(tuple, (self._made[node],)) if _is_shape(node) else self._made[node]
            for node in nodes
        ]
        self._graph.output(sent[0] if len(sent) == 1 else tuple(sent))

    def give(self, result: Any) -> None:
        for given in self._output_nodes(result):
            self._fetch(given)
        self._graph.output(fx.node.map_arg(result, self._made.__getitem__))

    def module(self) -> fx.GraphModule:
        return fx.GraphModule(self._root, self._graph, class_name="Stage")

    def find_module(self, name: str) -> nn.Module:
        constant = self._trace.constants.get(name)
        return constant if isinstance(constant, nn.Module) else self._trace.model.get_submodule(name)

    def _fetch(self, node: fx.Node) -> None:
        if node in self._made or node.op != "get_attr":
            return
        name = str(node.target)
        if name in self._trace.constants:
            self._made[node] = self._graph.get_attr(self._key(name, self._trace.constants[name]))
            return
        owner, attribute = owner_of(self._trace.model, name)
        value = getattr(owner, attribute)
        key = self._key(name, value)
        if isinstance(value, Tensor):
            self.homes[key] = (owner, attribute)
        self._made[node] = self._graph.get_attr(key)

    def _key(self, name: str, value: Any) -> str:
        if name not in self._keys:
            self._keys[name] = f"n{len(self._keys)}_" + "".join(c if c.isalnum() else "_" for c in name)
            self._root[self._keys[name]] = value
        return self._keys[name]

    @staticmethod
    def _output_nodes(result: Any) -> Iterator[fx.Node]:
        found: list[fx.Node] = []
        fx.node.map_arg(result, lambda node: found.append(node) or node)
        return iter(found)


def _is_shape(node: fx.Node) -> bool:
    """Whether a node's value is a torch.Size: ``x.shape`` or ``x.size()`` without a dimension."""
    if node.op == "call_method":
        return node.target == "size" and len(node.args) == 1 and not node.kwargs
    return node.op == "call_function" and node.target is getattr and node.args[1:2] == ("shape",)


def _size_of(node: fx.Node, tensors: Sequence[fx.Node]) -> tuple[fx.Node, int] | None:
    """A tensor among those given, and its dimension, whose size a node's integer is; known for exported graphs only."""
    value = node.meta.get("val")
    if not isinstance(value, torch.SymInt):
        return None
    for tensor in tensors:
        shaped = tensor.meta.get("val")
        if isinstance(shaped, Tensor):
            for dim, size in enumerate(shaped.shape):
                if isinstance(size, torch.SymInt) and operator.eq(size.node.expr, value.node.expr):
                    return tensor, dim
    return None
