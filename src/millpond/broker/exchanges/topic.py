"""The topic exchange: routing keys are words separated by dots, and a binding's key is a pattern of words.

    *    exactly one word, which may be empty: "a.*" matches "a.b" and "a.", not "a" nor "a.b.c"
    #    any number of words, also none:       "a.#" matches "a", "a.b" and "a.b.c"; "#" matches everything

The empty routing key has no words. A `*` or `#` that is only a part of a word is ordinary text, and so is one in a
message's key.

Patterns without wildcards are found by one look-up. The others are in a trie of words, which a message's words walk
through level by level: a set of nodes is where the words so far can lead to, and each word leads to the next set. A
node enters a set at most once, so a match costs at most (words of the key) x (nodes of the trie), even for patterns
such as "#.*.#.*.#" on which backtracking takes exponential time; usually it is a few look-ups per word, however many
unrelated bindings there are. A key has 255 bytes and so at most 256 words.
"""

from __future__ import annotations

from typing import Final, final

from mypy_extensions import i64

from millpond.broker.exchanges.exchange import Binding, Destination, DestinationCounts, Exchange


@final
class _Node:
    """A prefix of patterns. `destinations` are those of the pattern that ends here."""

    def __init__(self, parent: _Node | None, word: str) -> None:
        self.parent: Final = parent
        self.word: Final = word
        self.words: Final[dict[str, _Node]] = {}
        self.any_word: _Node | None = None
        self.any_words: _Node | None = None
        self.destinations: DestinationCounts | None = None
        # The step of the match that reached this node last: a node enters a set only once.
        self.step: i64 = 0

    def child(self, word: str) -> _Node | None:
        if word == "*":
            return self.any_word
        if word == "#":
            return self.any_words
        return self.words.get(word)

    def set_child(self, word: str, child: _Node | None) -> None:
        if word == "*":
            self.any_word = child
        elif word == "#":
            self.any_words = child
        elif child is not None:
            self.words[word] = child
        else:
            del self.words[word]

    @property
    def is_empty(self) -> bool:
        return not self.words and self.any_word is None and self.any_words is None and self.destinations is None


def _pattern(routing_key: str) -> list[str]:
    """The words of a pattern. Adjacent `#` mean the same as one."""
    pattern: list[str] = []
    for word in routing_key.split("."):
        if word != "#" or not pattern or pattern[-1] != "#":
            pattern.append(word)
    return pattern


@final
class TopicExchange(Exchange):
    def __init__(
        self, name: str, durable: bool, auto_delete: bool, internal: bool, arguments: dict[str, object]
    ) -> None:
        super().__init__(name, "topic", durable, auto_delete, internal, arguments)
        self._by_key: Final[dict[str, DestinationCounts]] = {}
        self._root: Final = _Node(None, "")
        self._step: i64 = 0

    def match(self, routing_key: str, headers: dict[str, object] | None, found: list[Destination]) -> None:
        exact = self._by_key.get(routing_key)
        if exact is not None:
            exact.append_to(found)
        if self._root.is_empty:
            return
        reached: list[_Node] = []
        self._step += 1
        self._reach(self._root, reached)
        if routing_key:
            for word in routing_key.split("."):
                reached = self._advance(reached, word)
                self.effort += len(reached)
                if not reached:
                    return
        for node in reached:
            if node.destinations is not None:
                node.destinations.append_to(found)

    def _advance(self, nodes: list[_Node], word: str) -> list[_Node]:
        """The nodes that one more word leads to."""
        reached: list[_Node] = []
        self._step += 1
        for node in nodes:
            if node.word == "#":
                self._reach(node, reached)
            # Wildcards are not in `words`, so a message's "*" and "#" are ordinary words.
            child = node.words.get(word)
            if child is not None:
                self._reach(child, reached)
            if node.any_word is not None:
                self._reach(node.any_word, reached)
        return reached

    def _reach(self, node: _Node, reached: list[_Node]) -> None:
        if node.step != self._step:
            node.step = self._step
            reached.append(node)
            # A `#` also stands for no word at all. Two are never adjacent, so this goes one deep.
            if node.any_words is not None:
                self._reach(node.any_words, reached)

    def _index(self, binding: Binding) -> None:
        pattern = _pattern(binding.routing_key)
        if "*" in pattern or "#" in pattern:
            node = self._root
            for word in pattern:
                child = node.child(word)
                if child is None:
                    child = _Node(node, word)
                    node.set_child(word, child)
                node = child
            if node.destinations is None:
                node.destinations = DestinationCounts()
            node.destinations.add(binding.destination)
        else:
            exact = self._by_key.get(binding.routing_key)
            if exact is None:
                exact = self._by_key[binding.routing_key] = DestinationCounts()
            exact.add(binding.destination)

    def _unindex(self, binding: Binding) -> None:
        pattern = _pattern(binding.routing_key)
        if "*" in pattern or "#" in pattern:
            node: _Node | None = self._root
            for word in pattern:
                assert node is not None
                node = node.child(word)
            assert node is not None
            assert node.destinations is not None
            node.destinations.remove(binding.destination)
            if node.destinations.is_empty:
                node.destinations = None
                self._prune(node)
        else:
            exact = self._by_key[binding.routing_key]
            exact.remove(binding.destination)
            if exact.is_empty:
                del self._by_key[binding.routing_key]

    def _prune(self, node: _Node) -> None:
        """Remove a node that leads nowhere any more, and the parents for which it was the last."""
        while node.is_empty and node.parent is not None:
            parent = node.parent
            parent.set_child(node.word, None)
            node = parent
