"""Put a meter into the syntax tree of a template: every loop, every value that is made on the way and every
text that is written into a buffer goes through it.

    {% for m in messages %}      {% for m in messages | counted %}
    {% set x = a + b %}          {% set x = (a + b) | taken %}
    {% set x %}{{ a }}{% ..      {% set x %}{{ a | written }}{% ..
    {{ a + b }}                  as it is: the output counts its pieces

So a plain template, which writes its contents and marks to the output, pays next to nothing.
"""

from __future__ import annotations

from jinja2 import nodes

COUNTED, TAKEN, WRITTEN = "_counted", "_taken", "_written"
"""Names of the filters that the environment must have: of what a loop goes through, of a value, of a text."""

_LONGEST_CHAIN = 8


def meter_tree(tree: nodes.Template) -> None:
    """Change a tree in place.

    Args:
        tree: A template's.
    """
    for loop in tree.find_all(nodes.For):
        loop.iter = _through(COUNTED, loop.iter)
    _meter_children(tree, buffered=False)


def _through(name: str, node: nodes.Expr) -> nodes.Filter:
    return nodes.Filter(node, name, [], [], None, None, lineno=node.lineno)


def _meter_children(node: nodes.Node, *, buffered: bool) -> None:
    """`buffered`: what is written below the node goes into a variable, not to the output."""
    buffers = nodes.Macro | nodes.CallBlock | nodes.AssignBlock | nodes.FilterBlock | nodes.Block
    buffered = buffered or isinstance(node, buffers) or (isinstance(node, nodes.For) and node.recursive)
    is_output = isinstance(node, nodes.Output)
    for field, value in node.iter_fields():
        children = value if isinstance(value, list) else [value]
        new = [
            _meter(child, buffered=buffered, is_output=is_output) if isinstance(child, nodes.Node) else child
            for child in children
        ]
        setattr(node, field, new if isinstance(value, list) else new[0])


def _meter(node: nodes.Node, *, buffered: bool, is_output: bool) -> nodes.Node:
    _meter_children(node, buffered=buffered)
    if isinstance(node, nodes.Concat):
        while len(node.nodes) > _LONGEST_CHAIN:
            first = nodes.Concat(node.nodes[:_LONGEST_CHAIN], lineno=node.lineno)
            node.nodes = [_through(TAKEN, first), *node.nodes[_LONGEST_CHAIN:]]
    elif isinstance(node, nodes.Add):
        node = _shorten(node)
    if is_output and buffered and not isinstance(node, nodes.TemplateData):
        return _through(WRITTEN, node)
    is_direct = is_output and not buffered
    return _through(TAKEN, node) if _makes_value(node) and not is_direct else node


def _makes_value(node: nodes.Node) -> bool:
    if isinstance(node, nodes.List | nodes.Tuple):
        return getattr(node, "ctx", "load") == "load" and not _is_constant(node.items)
    if isinstance(node, nodes.Dict):
        return not _is_constant([part for pair in node.items for part in (pair.key, pair.value)])
    if isinstance(node, nodes.Getitem):
        return isinstance(node.arg, nodes.Slice)
    return isinstance(node, nodes.Add | nodes.Concat)


def _is_constant(parts: list[nodes.Node]) -> bool:
    return all(isinstance(part, nodes.Const) for part in parts)


def _shorten(node: nodes.Add) -> nodes.Add:
    """Measure `a + b + .. + z`, whose left side is such a sum, once, but every few sums on the way."""
    left = node.left
    if isinstance(left, nodes.Filter) and left.name == TAKEN and isinstance(left.node, nodes.Add):
        length, inner = 1, left.node
        while isinstance(inner.left, nodes.Add):
            length, inner = length + 1, inner.left
        if length < _LONGEST_CHAIN:
            node.left = left.node
    return node
