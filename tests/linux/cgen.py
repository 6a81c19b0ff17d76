"""Random C functions without undefined behaviour, for comparison with gcc.

Every function is `unsigned long fN(struct S *p, long a0, int a1, unsigned char a2, unsigned long a3)`; it works on
locals of all integer types and on the struct, and returns a mix of its locals. Side effects inside expressions are
sequenced, divisors are never 0, shift counts are in range.
"""

from __future__ import annotations

import random

TYPES = (
    "_Bool", "char", "signed char", "unsigned char", "short", "unsigned short", "int", "unsigned int", "long",
    "unsigned long", "long long", "unsigned long long",
)  # fmt: skip
WIDTH = {"int": 31, "unsigned int": 31, "long": 63, "unsigned long": 63, "long long": 63, "unsigned long long": 63}

HEADER = """
enum E { E0, E1 = 5, E2, ENEG = -3, EBIG = 0x7fffffff };
enum U { U0, U1 = 0x80000000, U2 };
struct I { short s; unsigned char c; int n:7; unsigned int m:11; } ;
struct S {
  unsigned char u8; signed char i8; unsigned short u16; short i16; unsigned int u32; int i32;
  unsigned long u64; long i64; _Bool flag;
  unsigned int b1:1, b3:3, b12:12; int sb5:5; unsigned long w40:40; long sw35:35; unsigned long w64:64; _Bool bb:1;
  union { unsigned long word; unsigned int half[2]; unsigned char bytes[8]; struct { unsigned short lo, hi; }; };
  int arr[4]; struct I in[2]; enum E e; enum U u;
  struct S *self; short *sp;
  struct { unsigned char x; unsigned int y; unsigned long z:50; } __attribute__((packed)) pk;
};
static int h0(unsigned char a, short b) { return a * 3 + b; }
static unsigned long h1(int a, unsigned int b, _Bool c) { return c ? a + b : a ^ (long)b; }
static signed char h2(long x) { return x; }
static unsigned short h3(struct I i, int k) { i.n += k; i.c ^= 0x55; return i.n * 2 + i.c + i.m; }
static struct I h4(int x) { struct I r = { .c = x, .n = x >> 3, .m = x }; r.s = -x; return r; }
static _Bool h5(unsigned long *q, int d) { *q += d; return *q & 4; }
"""

MEMBERS = (
    "u8", "i8", "u16", "i16", "u32", "i32", "u64", "i64", "flag", "b1", "b3", "b12", "sb5", "w40", "sw35", "w64", "bb",
    "word", "half[1]", "bytes[3]", "lo", "hi", "arr[2]", "in[1].s", "in[0].n", "in[1].m", "in[0].c", "e", "u", "pk.x",
    "pk.y", "pk.z",
)  # fmt: skip
ADDRESSABLE = tuple(
    m for m in MEMBERS if m not in ("b1", "b3", "b12", "sb5", "w40", "sw35", "w64", "bb", "in[0].n", "in[1].m", "pk.z")
)


class Generator:
    """Makes functions. count: statements and full expressions so far."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.count = 0
        self.locals: list[str] = []
        self.labels = 0
        self.loops = 0
        self.spare = False

    def pick(self, *items: str) -> str:
        return self.random.choice(items)

    # Expressions.

    def number(self) -> str:
        r = self.random
        usual = (0, 1, 2, 3, 7, 127, 128, 255, 256, 0x7FFF, 0x8000, 0x7FFFFFFF)
        value = r.choice((*usual, r.getrandbits(16), r.getrandbits(31)))
        text = hex(value) if r.random() < 0.3 else str(value)
        if r.random() < 0.15:
            text = hex(r.getrandbits(64))
        return text + r.choice(("", "", "", "u", "l", "ul", "ull"))

    def atom(self) -> str:
        r = self.random.random()
        if r < 0.38:
            return self.random.choice(self.locals)
        if r < 0.68:
            return self.member()
        if r < 0.72:
            return self.pick("E1", "E2", "ENEG", "EBIG", "U1", "U2")
        if r < 0.76:
            return self.pick("sizeof(struct S)", "sizeof(p->u16)", "(unsigned char)'x'", "sizeof p->arr", "'\\377'")
        return self.number()

    def member(self) -> str:
        name = self.random.choice(MEMBERS)
        return self.pick(f"p->{name}", f"p->self->{name}", f"(*p).{name}")

    def expr(self, depth: int) -> str:
        if depth <= 0:
            return self.atom()
        r = self.random.random()
        e = self.expr
        d = depth - 1
        if r < 0.36:
            return f"({e(d)} {self.pick('+', '-', '*', '&', '|', '^', '+', '-')} {e(d)})"
        if r < 0.46:
            return f"({e(d)} {self.pick('<', '<=', '>', '>=', '==', '!=')} {e(d)})"
        if r < 0.53:
            kind = self.random.choice(list(WIDTH))
            return f"(({kind}){e(d)} {self.pick('<<', '>>')} ({e(d)} & {WIDTH[kind]}))"
        if r < 0.57:
            return f"({e(d)} {self.pick('/', '%')} (({e(d)} & 0xff) + 1))"
        if r < 0.60:
            return f"((short){e(d)} {self.pick('/', '%')} ((signed char){e(d)} | 1))"
        if r < 0.68:
            return f"({self.pick('-', '~', '!', '+')} {e(d)})"
        if r < 0.76:
            return f"(({self.random.choice(TYPES)}){e(d)})"
        if r < 0.82:
            return f"({e(d)} ? {e(d)} : {e(d)})"
        if r < 0.86:
            return f"({e(d)} {self.pick('&&', '||')} {e(d)})"
        if r < 0.91:
            return self.call(d)
        if r < 0.95:
            return self.pointer(d)
        return self.special(d)

    def call(self, d: int) -> str:
        e = self.expr
        return self.random.choice(
            (
                lambda: f"h0({e(d)}, {e(d)})",
                lambda: f"h1({e(d)}, {e(d)}, {e(d)})",
                lambda: f"h2({e(d)})",
                lambda: f"h3(p->in[{e(0)} & 1], {e(d)})",
                lambda: f"h4({e(d)}).{self.pick('s', 'c', 'n', 'm')}",
            )
        )()

    def pointer(self, d: int) -> str:
        e = self.expr
        return self.random.choice(
            (
                lambda: f"p->arr[{e(d)} & 3]",
                lambda: f"*(p->bytes + ({e(d)} & 7))",
                lambda: f"((unsigned char *)p->in)[{e(0)} & 2]",
                lambda: f"p->sp[{e(d)} & 4]",
                lambda: f"(&p->arr[{e(d)} & 3] - p->arr)",
                lambda: f"(&p->arr[{e(d)} & 3] {self.pick('<', '>=', '==', '!=')} p->arr + 2)",
                lambda: f"*(unsigned {self.pick('int', 'short', 'char')} *)&p->{self.random.choice(ADDRESSABLE[:8])}",
                lambda: f"*(&p->{self.random.choice(ADDRESSABLE)})",
                lambda: "((struct S *)((char *)&p->i32 - __builtin_offsetof(struct S, i32)))->u16",
                lambda: f"(&p->arr[3] - ({e(0)} & 1))[-1]",
                lambda: f"*(p->arr + 3 - ({e(d)} & 3))",
                lambda: "(p == p->self)",
                lambda: "!p->sp",
                lambda: f"((char *)&p->{self.random.choice(ADDRESSABLE)} - (char *)p)",
                lambda: f"(*(unsigned long *)((char *)p + ({e(d)} & 31)))",
            )
        )()

    def special(self, d: int) -> str:
        e = self.expr
        kind = self.random.choice(TYPES[1:])
        forms = [
            lambda: f"({{ {kind} z = {e(d)}; z {self.pick('+=', '^=', '|=')} 3; z; }})",
            lambda: f"({e(d)} ?: {e(d)})",
            lambda: f"((struct I){{ .m = {e(d)}, .s = 4 }}).{self.pick('s', 'c', 'm')}",
            lambda: f"__builtin_popcountl({e(d)})",
            lambda: f"__builtin_choose_expr(sizeof(+{e(d)}) == 8, {e(d)}, {e(d)})",
            lambda: f"__builtin_types_compatible_p(typeof(+{e(d)}), {kind})",
            lambda: f"sizeof(+{e(d)})",
            lambda: f"((typeof(+{e(d)}))({e(d)}))",
        ]
        if self.spare:
            self.spare = False
            forms += [
                lambda: self.pick("t++", "--t", "t--", "++t"),
                lambda: f"(t {self.pick('=', '+=', '-=', '^=', '*=')} {self.random.choice(self.locals)})",
                lambda: f"({self.random.choice(self.locals)} > 5 && (t += 3))",
            ]
            return self.random.choice(forms[-3:])()
        return self.random.choice(forms)()

    def full(self, depth: int = 3) -> str:
        """A full expression."""
        self.count += 1
        self.spare = True
        text = self.expr(min(depth, self.random.choice((1, 1, 2, 2, 3))))
        self.spare = False
        return text

    # Statements.

    def lvalue(self) -> str:
        r = self.random.random()
        if r < 0.45:
            return self.random.choice(self.locals)
        if r < 0.85:
            return self.member()
        return self.pick("p->arr[a1 & 3]", "p->bytes[a0 & 7]", "((int *)p->in)[a2 & 1]", "p->sp[1]", "p->half[a0 & 1]")

    def statement(self, depth: int) -> str:
        self.count += 1
        r = self.random.random()
        if depth <= 0 or r < 0.5:
            if r < 0.2:
                op = self.pick("+=", "-=", "*=", "&=", "|=", "^=")
                return f"{self.lvalue()} {op} {self.full()};"
            if r < 0.24:
                return f"{self.pick('++', '--')}{self.lvalue()};"
            if r < 0.28:
                return f"{self.lvalue()}{self.pick('++', '--')};"
            if r < 0.31:
                return f"{self.lvalue()} {self.pick('<<=', '>>=')} {self.full(1)} & 7;"
            return f"{self.lvalue()} = {self.full()};"
        if r < 0.68:
            other = f" else {{ {self.block(depth - 1)} }}" if self.random.random() < 0.5 else ""
            return f"if ({self.full()}) {{ {self.block(depth - 1)} }}{other}"
        if r < 0.78:
            return self.loop(depth)
        if r < 0.87:
            return self.switch(depth)
        if r < 0.92:
            self.labels += 1
            label = f"L{self.labels}"
            return f"if ({self.full()}) goto {label}; {self.block(depth - 1)} {label}: ;"
        return self.pick(
            "p->in[1] = p->in[0];", "p->in[a1 & 1] = h4(a2);", "{ unsigned long q = a3; p->flag = h5(&q, 3); a3 = q; }",
            "{ struct I i = p->in[0]; i.n--; p->in[1] = i; }",
            "{ int x[3] = { a1, [2] = 5 }; x[1] += x[a2 & 1]; p->i32 = x[1]; }",
            "p->sp = &p->in[1].s;", "{ struct S *q = p; int *r = &q->arr[1]; *r++ = 7; --*r; }",
            "p->b3 = p->b12++ + 1;", "{ unsigned char c[5] = \"ab\"; c[4] = a0; p->u16 = c[1] + c[4]; }",
        )  # fmt: skip

    def block(self, depth: int) -> str:
        return " ".join(self.statement(depth) for _ in range(self.random.randint(1, 2)))

    def loop(self, depth: int) -> str:
        self.loops += 1
        i = f"i{self.loops}"
        skip = f" if ({self.full(1)}) {self.pick('break', 'continue')};" if self.random.random() < 0.5 else ""
        body = self.block(depth - 1)
        return self.random.choice(
            (
                f"{{ int {i}; for ({i} = 0; {i} < 3; {i}++) {{{skip} {body} }} }}",
                f"{{ int {i} = 3; while ({i}-- > 0) {{{skip} {body} }} }}",
                f"{{ int {i} = 0; do {{{skip} {body} }} while (++{i} < 3); }}",
            )
        )

    def switch(self, depth: int) -> str:
        arms = []
        for label in ("case 0:", "case 1: case 7:", "case 2 ... 4:", "default:", "case -1:"):
            if self.random.random() < 0.8:
                arms.append(f"{label} {self.block(depth - 1)}{' break;' if self.random.random() < 0.7 else ''}")
        return f"switch ({self.full(2)} {self.pick('& 7', '- 1', '')}) {{ {' '.join(arms)} ; }}"

    def function(self, name: str, statements: int) -> str:
        """A function of about so many statements."""
        self.locals = ["a0", "a1", "a2", "a3"]
        lines = [f"{self.random.choice(TYPES)} t = {self.random.choice(self.locals)};"]
        for number, kind in enumerate(TYPES):
            lines.append(f"{kind} v{number} = {self.full(2)};")
            self.locals.append(f"v{number}")
        while statements > 0:
            before = self.count
            lines.append(self.statement(3))
            statements -= self.count - before
        mix = " + ".join(f"{local} * {3 + 2 * n}ul" for n, local in enumerate([*self.locals, "t"]))
        body = "\n  ".join(lines)
        head = f"unsigned long {name}(struct S *p, long a0, int a1, unsigned char a2, unsigned long a3)"
        return f"{head}\n{{\n  {body}\n  return {mix};\n}}\n"


def program(seed: int, count: int, per_function: int = 60) -> tuple[str, int, int]:
    """A text of at least `count` statements and expressions, the number of its functions, and the exact count."""
    generator = Generator(seed)
    functions: list[str] = []
    while generator.count < count:
        functions.append(generator.function(f"f{len(functions)}", per_function))
    return HEADER + "\n".join(functions), len(functions), generator.count


HARNESS = """
static unsigned long seed_bytes(unsigned char *at, unsigned long n, unsigned long x)
{{
  for (unsigned long k = 0; k < n; k++) {{ x = x * 6364136223846793005ul + 1442695040888963407ul; at[k] = x >> 56; }}
  return x;
}}
int main(void)
{{
  static unsigned long (*const f[])(struct S *, long, int, unsigned char, unsigned long) = {{ {functions} }};
  for (int n = 0; n < {count}; n++) for (int k = 0; k < {inputs}; k++) {{
    static struct S s;
    unsigned long a[4], mix = 0;
    unsigned long x = seed_bytes((unsigned char *)&s, sizeof s, n * {inputs} + k);
    seed_bytes((unsigned char *)a, sizeof a, x);
    *(unsigned char *)&s.flag &= 1;
    s.self = &s; s.sp = &s.in[0].s;
    if (k & 1) {{ a[0] = (signed char)a[0]; a[1] = (signed char)a[1]; a[3] &= 0xff; }}
    unsigned long r = f[n](&s, a[0], a[1], a[2], a[3]);
    {mixing}
    mix = mix * 31 + ((char *)s.sp - (char *)&s);
    __builtin_printf("%lx %lx\\n", r, mix);
  }}
  return 0;
}}
"""

OBSERVED = (*MEMBERS, "arr[0]", "arr[1]", "arr[3]", "in[0].s", "in[1].c", "in[1].n", "in[0].m", "half[0]")


def harness(functions: int, inputs: int) -> str:
    """A main that prints what every function returns and leaves in the struct, for several inputs."""
    names = ", ".join(f"f{n}" for n in range(functions))
    mixing = " ".join(f"mix = mix * 31 + (unsigned long)s.{member};" for member in OBSERVED)
    return HARNESS.format(functions=names, count=functions, inputs=inputs, mixing=mixing)
