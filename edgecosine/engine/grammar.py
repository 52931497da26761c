"""Compiles the form that an answer must have, and computes the tokens that it allows (llguidance).

A matcher's results depend only on the grammar and the tokens of the answer: it moves to any
sequence by itself, forwards and backwards. So a mask is the same in a chain, in a tree, in a batch
with other requests and after a restart.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from itertools import takewhile
from typing import TYPE_CHECKING, Any, Final

from edgecosine.engine.answer_grammar import AnswerForm, AnswerGrammar, joined, schemas_of
from edgecosine.engine.base import TokenMask
from edgecosine.engine.grammar_compiler import (
    compiled,
    grammar_source,
    load_tokenizer,
    one_line,
    reason_of,
    tokenizer_text,
)
from edgecosine.engine.grammar_trial import GrammarTrial
from edgecosine.errors import RequestError
from edgecosine.protocol.api.response_format import refuse_schema
from edgecosine.protocol.wire.tree import EMPTY_TREE, ROOT, TokenTree

if TYPE_CHECKING:
    from llguidance import LLMatcher

MAX_FORCED: Final = 16
"""Most forced tokens that are proposed at one time."""


class Grammars:
    """Compiles formats for the tokenizer of one model. Slow: not for the event loop."""

    def __init__(self, tokenizer: Any, eos_tokens: Collection[int], num_tokens: int) -> None:
        """`tokenizer` is from transformers; `num_tokens` is the bound of its token ids.

        Raises RequestError where grammars cannot be used with it.
        """
        self._eos_tokens = frozenset(eos_tokens)
        text = tokenizer_text(tokenizer, sorted(eos_tokens), num_tokens)
        self._trial = GrammarTrial(text)
        self._tokenizer = load_tokenizer(text)
        self._vocabulary: Mapping[str, int] = tokenizer.get_vocab()

    def compile(self, form: AnswerForm) -> Grammar:
        """The grammar of an answer; takes a few seconds at most, and at the first time as long as a
        child process takes to start.

        Raises RequestError with the code invalid_schema and the reason.
        """
        fault = "response_format" if form.form else "tools"
        try:
            source = self._source(form)
        except ValueError as error:
            refuse_schema(f"the schema cannot be read: {one_line(str(error))}", fault)
        if reason := self._trial.fault(source):
            refuse_schema(reason, fault)
        matcher = compiled(self._tokenizer, source)
        if matcher.is_error():
            refuse_schema(reason_of(matcher), fault)
        return Grammar(matcher, self._eos_tokens)

    def _source(self, form: AnswerForm) -> str:
        schemas = {name: grammar_source(each) for name, each in schemas_of(form).items()}
        if form.is_bare:
            return schemas["content"]
        marks = {mark: self._mark_id(mark) for mark in form.dialect.all_marks}
        ids = {mark: token for mark, token in marks.items() if token is not None}
        return joined(AnswerGrammar(form, ids).lark(), schemas)

    def _mark_id(self, mark: str) -> int | None:
        """The token that stands for a tag and has no text for llguidance; None: it is spelled."""
        token = self._vocabulary.get(mark)
        return token if token is not None and self._tokenizer.is_special_token(token) else None


class Grammar:
    """A compiled format."""

    def __init__(self, matcher: LLMatcher, eos_tokens: frozenset[int]) -> None:
        self._matcher, self._eos_tokens = matcher, eos_tokens

    def matcher(self) -> GrammarMatcher:
        """A matcher for one answer."""
        return GrammarMatcher(self._matcher.deep_copy(), self._eos_tokens)


class GrammarMatcher:
    """Decides which tokens may follow the tokens of an answer; implements `Constraint`.

    Safe to use from one thread at a time.
    """

    def __init__(self, matcher: LLMatcher, eos_tokens: frozenset[int]) -> None:
        self._matcher, self._eos_tokens = matcher, eos_tokens
        self._tokens: list[int] = []
        """Tokens that the matcher has consumed."""

    def allowed(self, answer: Sequence[int]) -> TokenMask | None:
        """The tokens that may follow; an end token only after a complete text. None after an end
        token, where anything may be drawn since nothing is read.

        Raises RequestError.
        """
        if not self._move(answer):
            return None
        mask = TokenMask(self._matcher.compute_bitmask())
        if self._matcher.is_error():
            raise self._fault()
        return mask

    def forced(self, answer: Sequence[int], most: int) -> tuple[int, ...]:
        """The tokens after an answer that have no alternative, at most `most` and `MAX_FORCED`."""
        if not self._move(answer):
            return ()
        tokens = self._matcher.compute_ff_tokens()[: min(most, MAX_FORCED)]
        return tuple(takewhile(lambda token: token not in self._eos_tokens, tokens))

    def cut(self, answer: Sequence[int], tree: TokenTree) -> TokenTree:
        """The part of a draft tree after an answer that keeps to the grammar."""
        if not len(tree):
            return tree
        if not self._move(answer):
            return EMPTY_TREE
        kept = list[int]()
        self._keep_below(tree, ROOT, kept)
        return tree if len(kept) == len(tree) else tree.only(sorted(kept))

    def _keep_below(self, tree: TokenTree, node: int, kept: list[int]) -> None:
        children = tree.children(node)
        if not children:
            return
        forced = self._matcher.compute_ff_tokens()[:1]
        for child in children:
            token = tree.tokens[child]
            if token in self._eos_tokens:
                if self._matcher.is_accepting():
                    kept.append(child)
            elif (not forced or token == forced[0]) and self._matcher.try_consume_tokens([token]):
                kept.append(child)
                self._keep_below(tree, child, kept)
                self._matcher.rollback(1)

    def _move(self, answer: Sequence[int]) -> bool:
        """Make the consumed tokens those of `answer`; False if an end token is among them."""
        num_same = len(self._tokens)
        if list(answer[:num_same]) != self._tokens:
            pairs = zip(self._tokens, answer, strict=False)
            num_same = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
            self._matcher.rollback(len(self._tokens) - num_same)
            del self._tokens[num_same:]
        for token in answer[num_same:]:
            if token in self._eos_tokens:
                return False
            if not self._matcher.consume_token(token):
                raise self._fault()
            self._tokens.append(token)
        if self._matcher.is_error():
            raise self._fault()
        return True

    def _fault(self) -> RequestError:
        return RequestError(
            f"the format failed after {len(self._tokens)} tokens: {reason_of(self._matcher)}",
            code="invalid_schema",
            parameter="response_format",
        )
