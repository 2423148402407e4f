r"""Formulas of docstrings, which are plain text there, as LaTeX.

The notation is that of the library: ``sum_k m log w_k``, ``E_q[log p(x | z)]``, ``x ~ Bernoulli(mu_y)``. Words that are
neither symbols nor functions become text.
"""

import re

GREEK = "alpha beta gamma delta epsilon theta kappa lambda mu nu pi rho sigma phi psi omega Lambda Sigma Phi"
COMMANDS = {name: rf"\{name}" for name in [*GREEK.split(), "log", "exp", "det", "min", "max", "sum", "prod"]}
COMMANDS |= {"int": r"\int", "grad": r"\nabla", "in": r"\in", "E": r"\mathbb{E}", "N": r"\mathcal{N}"}
COMMANDS |= {"argmin": r"\operatorname{arg\,min}", "argmax": r"\operatorname{arg\,max}", "inf": r"\infty"}
DISTRIBUTIONS = "Bernoulli Categorical Dirichlet Beta Gamma Wishart Concrete Poisson KL CUBO ELBO EUBO IWAE"
NETWORKS = "decoder encoder prior likelihood generator classifier estimate transformer"
FUNCTIONS = "diag softmax sigmoid stop mean relaxed"
OPERATORS = {*DISTRIBUTIONS.split(), *NETWORKS.split(), *FUNCTIONS.split()}
SIGNS = {"~": r"\sim", "<=": r"\le", ">=": r"\ge", "!=": r"\ne", "->": r"\to", "...": r"\ldots", "||": r"\,\|\,"}
SIGNS |= {"*": r"\,", "{": r"\{", "}": r"\}", "%": r"\%", "&": r"\&"}
DIFFERENTIALS = {"da", "db", "dc", "df", "dz", "dtheta", "dphi"}

TOKEN = re.compile(
    r"(?P<gap>  +)|(?P<hyphened>[a-z]{3,}(?:-[a-z]{3,}|'s))|(?P<name>[A-Za-z]+(?:_dim|_size|_commitment)?'*)"
    r"|(?P<number>\d+)|(?P<sign>~|<=|>=|!=|->|\.\.\.|\|\||.)"
)


def display(text: str) -> str:
    """Return a formula of some lines as a block of Markdown; lines are aligned at their first relation."""
    lines = [line.rstrip() for line in text.split("\n") if line.strip()]
    if len(lines) == 1:
        return f"$$\n{latex(lines[0])}\n$$"
    rows = " \\\\\n".join(aligned(latex(line)) for line in lines)
    return f"$$\n\\begin{{aligned}}\n{rows}\n\\end{{aligned}}\n$$"


def aligned(line: str) -> str:
    """Return a line with a mark before its first relation, or after its first colon."""
    marked = re.sub(r"(\\sim|=|\\le|\\ge)(?![a-z])", r"&\1", line, count=1)
    return marked if marked != line else re.sub(r" : ", r": & ", line, count=1)


def latex(text: str) -> str:
    r"""Return one line as LaTeX.

    Example:
        >>> print(latex("log sum_k m w_k^(1-alpha) / (1-alpha)"))
        \log \sum_{k} m w_{k}^{1 - \alpha} / ( 1 - \alpha )
        >>> print(latex("x ~ p(x | z), uniform unless told otherwise"))
        x \sim p ( x \mid z ) , \text{uniform unless told otherwise}
    """
    found = _Reader(prepared(text)).read()
    found = re.sub(r" \} +\\text\{ ", " ", re.sub(r"\s+", " ", found))
    # Words keep their distance from symbols, and none from brackets and commas.
    found = re.sub(r"(?<=[(,=]) (\\text\{) ", r" \1", found)
    return re.sub(r"(\\text\{[^{}]*) \}(?= ?[),_^]|$)", r"\1}", found).strip()


def prepared(text: str) -> str:
    """Return a line with fractions of short parts, conditions and transposed matrices written as LaTeX has them."""
    text = re.sub(r"(?<=[^,\s])  +(?=[=~+])|(?<=[:+])  +", " ", text)
    text = re.sub(r"(?<=[a-z])\|(?=[a-z])| \| |(?<=x) given ", r" \\mid ", text)
    text = re.sub(r"\b(\w)/\((\w+[-+]\w+)\)|\b(d)/(d\w+)\b", _fraction, text)
    text = re.sub(r"(?<![\w^)])\((\w+[-+]\d)\)/(\w)\b", _fraction, text)
    text = re.sub(r"(?<![\w^)/])(\w)/(\w)\b(?!\()|(?<![\w^)/])\((\w)/(\w)\)", _fraction, text)
    text = re.sub(r"\bsqrt\((\w)\)", r"\\sqrt{\1}", re.sub(r"\bz(\d)\b", r"z_\1", text))
    return re.sub(r"([LW]\(x\) [LW]\(x\))'", r"\1^\\top", text).replace("w' u", "w^\\top u")


def _fraction(match: re.Match) -> str:
    above, below = (part for part in match.groups() if part)
    return rf"\frac{{{above}}}{{{below}}}"


class _Reader:
    """Reads a line from left to right."""

    def __init__(self, text: str):
        self.text, self.at, self.depth = text, 0, 0

    def read(self, until: str = "") -> str:
        """Return LaTeX of what comes up to one of these signs, or to the end."""
        found = []
        while self.at < len(self.text) and self.text[self.at] not in (until or "\0"):
            found.append(self.next())
        return " ".join(part for part in found if part)

    def next(self) -> str:
        """Return the next part, with its indices and powers."""
        if command := re.compile(r"\\(mid|top|frac|sqrt)").match(self.text, self.at):
            self.at = command.end()
            return command[0] + "".join(self.braced() for _ in range({"frac": 2, "sqrt": 1}.get(command[1], 0)))
        match = TOKEN.match(self.text, self.at)
        self.at = match.end()
        return self.scripts(self.shown(match[0], match.lastgroup))

    def braced(self) -> str:
        """Return what stands in the braces that come, in braces."""
        self.at += 1
        inner = self.read("}")
        self.at += 1
        return f"{{{inner}}}"

    def scripts(self, shown: str) -> str:
        """Return a part with the indices and powers that follow it."""
        while self.at + 1 < len(self.text) and self.text[self.at] in "_^":
            sign, self.at = self.text[self.at], self.at + 1
            self.depth += 1
            shown += f"{sign}{{{self.script(shown, sign)}}}"
            self.depth -= 1
        return shown

    def script(self, shown: str, sign: str) -> str:
        """Return one index or power."""
        if shown.startswith(r"\mathbb{E}"):
            inner = self.read("[")
            return inner[2:-2] if inner.startswith("( ") and inner.endswith(" )") else inner
        if self.text[self.at] in "({":
            close = {"(": ")", "{": "}"}[self.text[self.at]]
            self.at += 1
            inner = self.read(close)
            self.at += 1
            return inner
        match = re.compile(r"-?\d+[a-z]?|\\top|[A-Za-z]+'*").match(self.text, self.at)
        if match is None:  # a power of a power, or something new
            raise ValueError(f"formula {self.text!r}: no index or power after place {self.at}")
        self.at = match.end()
        found = self.index(match[0])
        return self.scripts(found) if sign == "^" and len(match[0]) == 1 and found.isalpha() else found

    def index(self, text: str) -> str:
        """Return an index: a symbol, some of them side by side, or a word."""
        name = text.rstrip("'")
        if name in COMMANDS or len(name) <= 2 or not name.isalpha():
            return COMMANDS.get(name, " ".join(name)) + text[len(name) :] if name.isalpha() else text
        return rf"\text{{{name}}}"

    def shown(self, text: str, kind: str | None) -> str:
        """Return a part without its indices."""
        if kind == "gap":
            return r"\qquad" if len(text) > 3 else r"\;"
        if kind == "name":
            return self.name(text)
        if kind == "hyphened":
            return rf"\text{{{text}}} "
        if kind == "number" and text == "1" and self.text[self.at : self.at + 1] == "[":
            return r"\mathbf{1}"
        return SIGNS.get(text, text)

    def name(self, text: str) -> str:
        """Return a name: a symbol, a function or a word."""
        name, primes = text.rstrip("'"), text[len(text.rstrip("'")) :]
        following = self.text[self.at : self.at + 1]
        if name in COMMANDS and not (name in ("E", "N") and following not in "_[(") and (name != "in" or self.depth):
            return COMMANDS[name] + primes
        if name in OPERATORS and (following in ("(", "_", "") or name.isupper() or name == "relaxed"):
            return rf"\operatorname{{{name}}}" + primes
        if name in DIFFERENTIALS:
            return f"d {COMMANDS.get(name[1:], name[1:])}"
        article = name == "a" and re.match(r" [a-z]{3,}", self.text[self.at :])
        if len(name) == 1 and not article:
            return name + primes
        return r"\text{ " + name.replace("_", r"\_") + " }"
