"""What all parts of the parser share: the place in the token list, errors, and the words of the language."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from iretrace.linux.ctree import Pos
from iretrace.linux.lex import Token


def words(text: str) -> frozenset[str]:
    """The words of `text` as a set."""
    return frozenset(text.split())


TYPE_WORDS = words(
    """void char short int long float double signed unsigned _Bool __signed__ __signed __int128 __int128_t
    __uint128_t"""
)
STORAGE_WORDS = words(
    """static extern register typedef auto inline __inline __inline__ _Noreturn _Thread_local __thread"""
)
QUALIFIERS = words(
    """const volatile restrict __const __const__ __volatile __volatile__ __restrict __restrict__ _Atomic"""
)
TAG_WORDS = frozenset(("struct", "union", "enum"))
TYPEOF_WORDS = words("typeof __typeof __typeof__ typeof_unqual __typeof_unqual__ __auto_type")
ASM_WORDS = words("asm __asm __asm__")
KEYWORDS = (
    TYPE_WORDS | STORAGE_WORDS | QUALIFIERS | TAG_WORDS | TYPEOF_WORDS | ASM_WORDS
    | words("if else while do for switch case default break continue return goto sizeof __label__")
)  # fmt: skip

# The kernel's annotations that only say something to the compiler, sparse or the linker. They are dropped where they
# stand, whether or not the tree's definition was seen; most expand to attributes or to nothing.
ANNOTATIONS = words(
    """__always_inline __noinline noinline noinstr __init __exit __initdata __initconst __ro_after_init
    __read_mostly __user __kernel __iomem __rcu __percpu __force __nocast __private __bitwise __must_check
    __maybe_unused __always_unused __unused __used __visible __cold __hot __pure __weak __noreturn __malloc
    __deprecated __no_kcsan __no_sanitize_address __no_sanitize_memory __no_sanitize_thread
    __no_sanitize_undefined __no_sanitize_or_inline __no_kasan_or_inline __no_kmsan_checks __noendbr __nocfi
    __bpf_kfunc notrace nokprobe_inline asmlinkage __latent_entropy __randomize_layout __no_randomize_layout
    __nonstring __meminit __meminitdata __cpuinit __init_or_module __initdata_or_module __refdata __ref
    __sched __lockfunc __kprobes __noclone __flatten __no_profile __mitigate_spectre_bhb inline_notrace
    noinline_for_stack __no_stack_protector __designated_init __entry_text __irq_entry __softirq_entry
    __cpuidle __gnu_inline __extension__ __attribute_const__ __noscs __no_sanitize_coverage __init_memblock
    __nosave __nosavedata __uninitialized"""
)
ANNOTATION_CALLS = words(
    """__printf __scanf __must_hold __acquires __releases __cond_acquires __cond_releases __section __aligned
    __counted_by __counted_by_le __counted_by_be __alloc_size __realloc_size __assume_aligned __copy __error
    __compiletime_error __compiletime_warning __warning __alias __no_sanitize __guarded_by __pt_guarded_by
    __cleanup __attribute __attribute__ __access __format_arg __diagnose_as __declspec __must_hold_shared
    __acquires_shared __releases_shared"""
)


class ParseError(Exception):
    """A construct that the parser does not know: where (pos) and what (construct)."""

    def __init__(self, pos: Pos, construct: str) -> None:
        super().__init__(f"{pos}: cannot parse {construct}")
        self.pos = pos
        self.construct = construct


class Cursor:
    """A place in a list of tokens. `texts[i]` is the text of token i; the list ends with an empty text."""

    def __init__(self, tokens: Sequence[Token], is_typedef: Callable[[str], bool], path: str = "") -> None:
        last = tokens[-1] if tokens else Token("end", "", path, 1)
        self.tokens = [*tokens, Token("end", "", last.path, last.line)]
        self.texts = [token.text for token in self.tokens]
        self.at = 0
        self.path = path or last.path
        self.is_typedef = is_typedef
        self._pos = Pos(last.path, last.line)

    def pos(self) -> Pos:
        """Where the next token stands."""
        token = self.tokens[self.at]
        last = self._pos
        if token.line != last.line or token.path != last.path:
            last = self._pos = Pos(token.path, token.line)
        return last

    def error(self, construct: str) -> ParseError:
        """A ParseError at the next token."""
        return ParseError(self.pos(), construct)

    def expect(self, text: str) -> None:
        """Pass over `text`, which must come next."""
        if self.texts[self.at] != text:
            found = self.texts[self.at] or "the end"
            raise self.error(f"{found!r} where {text!r} is expected")
        self.at += 1

    def accept(self, text: str) -> bool:
        """Pass over `text` if it comes next."""
        if self.texts[self.at] != text:
            return False
        self.at += 1
        return True

    def identifier(self) -> str:
        """Pass over an identifier and return it."""
        token = self.tokens[self.at]
        if token.kind != "ident":
            raise self.error(f"{token.text or 'the end'!r} where a name is expected")
        self.at += 1
        return token.text

    def skip_parentheses(self) -> tuple[int, int]:
        """Pass over `( ... )`; the range of the tokens inside."""
        self.expect("(")
        start, depth = self.at, 1
        while depth:
            text = self.texts[self.at]
            if text == "(":
                depth += 1
            elif text == ")":
                depth -= 1
            elif not text:
                raise self.error("parentheses that are never closed")
            self.at += 1
        return start, self.at - 1
