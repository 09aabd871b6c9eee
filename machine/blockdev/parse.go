package blockdev

import (
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/kilnhq/kiln/internal/spelling"
)

// Limits of selectors.
const (
	maxSelector = 4096 // bytes
	maxDepth    = 64   // of parentheses and negations
)

// ParseSelector reads a selector. The error is a *SyntaxError.
func ParseSelector(text string) (*Selector, error) {
	p := &parser{text: text, fields: fields()}
	if len(text) > maxSelector {
		return nil, p.fail(0, "it has %d bytes, at most %d are read", len(text), maxSelector)
	}
	if !utf8.ValidString(text) || strings.ContainsAny(text, "\n\r\x00") {
		return nil, p.fail(0, "want one line of UTF-8 text")
	}
	if err := p.next(); err != nil {
		return nil, err
	}
	match, err := p.or(0)
	if err != nil {
		return nil, err
	}
	if p.kind != end {
		return nil, p.unexpected("&&, || or the end")
	}
	return &Selector{text: strings.TrimSpace(text), match: match}, nil
}

// kinds of tokens
const (
	end = iota
	word
	quoted
	numeral
	operator
)

// A parser has read up to one token, which is the next one to use. The grammar:
//
//	or     = and { "||" and }
//	and    = not { "&&" not }
//	not    = "!" not | "(" or ")" | test
//	test   = quoted "in" field | field [ op value | "." function "(" quoted ")" ]
//	number = numeral [ unit ] { "*" ( numeral | unit ) }
type parser struct {
	text   string
	fields []field
	pos    int // behind the token

	kind  int
	token string // without quotes
	at    int    // where it begins
}

type predicate = func(*Device) bool

func (p *parser) fail(at int, format string, args ...any) error {
	return &SyntaxError{Text: p.text, Column: 1 + utf8.RuneCountInString(p.text[:at]), Detail: fmt.Sprintf(format, args...)}
}

// unexpected is the error for the token when there should be something else.
func (p *parser) unexpected(want string) error {
	if p.kind == end {
		return p.fail(p.at, "it ends here, want %s", want)
	}
	return p.fail(p.at, "got %q, want %s", p.token, want)
}

func letter(c byte) bool { return 'a' <= c|0x20 && c|0x20 <= 'z' || c == '_' }
func digit(c byte) bool  { return '0' <= c && c <= '9' }

// next reads a token.
func (p *parser) next() error {
	for p.pos < len(p.text) && (p.text[p.pos] == ' ' || p.text[p.pos] == '\t') {
		p.pos++
	}
	p.at = p.pos
	rest := p.text[p.pos:]
	if rest == "" {
		p.kind, p.token = end, ""
		return nil
	}
	n := 0
	for n < len(rest) && (letter(rest[n]) || n > 0 && (digit(rest[n]) || rest[n] == '-' && n+1 < len(rest) && letter(rest[n+1]))) {
		n++
	}
	if n > 0 {
		return p.take(word, n)
	}
	for n < len(rest) && (digit(rest[n]) || n > 0 && rest[n] == '.') {
		n++
	}
	if n > 0 {
		return p.take(numeral, n)
	}
	if c := rest[0]; c == '"' || c == '\'' {
		length := strings.IndexByte(rest[1:], c)
		if length < 0 {
			return p.fail(p.at, "the string that begins here has no closing %c", c)
		}
		p.kind, p.token = quoted, rest[1:1+length]
		p.pos += length + 2
		return nil
	}
	for _, op := range []string{"==", "!=", "<=", ">=", "=~", "&&", "||", "<", ">", "!", "(", ")", ".", "*"} {
		if strings.HasPrefix(rest, op) {
			return p.take(operator, len(op))
		}
	}
	c, _ := utf8.DecodeRuneInString(rest)
	return p.fail(p.at, "unexpected %q, want a field, a value or an operator", c)
}

func (p *parser) take(kind, n int) error {
	p.kind, p.token = kind, p.text[p.pos:p.pos+n]
	p.pos += n
	return nil
}

// accept goes past the token if it is the operator.
func (p *parser) accept(op string) (bool, error) {
	if p.kind != operator || p.token != op {
		return false, nil
	}
	return true, p.next()
}

func (p *parser) expect(op string) error {
	ok, err := p.accept(op)
	if err == nil && !ok {
		err = p.unexpected(op)
	}
	return err
}

func (p *parser) or(depth int) (predicate, error) {
	return p.chain("||", func() (predicate, error) {
		return p.chain("&&", func() (predicate, error) { return p.not(depth) })
	})
}

// chain reads one operand or several with the operator in between.
func (p *parser) chain(op string, operand func() (predicate, error)) (predicate, error) {
	var operands []predicate
	for {
		f, err := operand()
		if err != nil {
			return nil, err
		}
		operands = append(operands, f)
		if ok, err := p.accept(op); err != nil {
			return nil, err
		} else if !ok {
			break
		}
	}
	if len(operands) == 1 {
		return operands[0], nil
	}
	all := op == "&&"
	return func(d *Device) bool {
		for _, f := range operands {
			if f(d) != all {
				return !all
			}
		}
		return all
	}, nil
}

func (p *parser) not(depth int) (predicate, error) {
	if depth > maxDepth {
		return nil, p.fail(p.at, "more than %d parentheses and negations within each other", maxDepth)
	}
	if ok, err := p.accept("!"); err != nil {
		return nil, err
	} else if ok {
		f, err := p.not(depth + 1)
		if err != nil {
			return nil, err
		}
		return func(d *Device) bool { return !f(d) }, nil
	}
	if ok, err := p.accept("("); err != nil {
		return nil, err
	} else if ok {
		f, err := p.or(depth + 1)
		if err != nil {
			return nil, err
		}
		return f, p.expect(")")
	}
	return p.test()
}

func (p *parser) test() (predicate, error) {
	if p.kind == quoted {
		return p.in()
	}
	at := p.at
	f, err := p.field()
	if err != nil {
		return nil, err
	}
	if ok, err := p.accept("."); err != nil {
		return nil, err
	} else if ok {
		return p.function(f)
	}
	op := p.token
	comparison := p.kind == operator && slices.Contains([]string{"==", "!=", "<", "<=", ">", ">=", "=~"}, op)
	if !comparison {
		if f.truth == nil {
			if p.kind == end || p.kind == operator {
				return nil, p.fail(at, "%q is not true or false; want %s behind it", f.names[0], f.operators())
			}
			return nil, p.unexpected(f.operators())
		}
		return f.truth, nil
	}
	opAt := p.at
	if err := p.next(); err != nil {
		return nil, err
	}
	var match predicate
	switch {
	case f.isText():
		if p.kind != quoted {
			return nil, p.unexpected(fmt.Sprintf("a string in quotes, as %q is text", f.names[0]))
		}
		match = f.compareText(op, p.token)
		err = p.next()
	case f.number != nil:
		var n int64
		n, err = p.number(f)
		match = f.compareNumber(op, n)
	default:
		if p.kind != word || p.token != "true" && p.token != "false" {
			return nil, p.unexpected("true or false")
		}
		if want := (p.token == "true") == (op == "=="); op == "==" || op == "!=" {
			match = func(d *Device) bool { return f.truth(d) == want }
		}
		err = p.next()
	}
	if err == nil && match == nil {
		err = p.fail(opAt, "%q cannot be compared with %s, want %s", f.names[0], op, f.operators())
	}
	return match, err
}

// field reads the name of a field.
func (p *parser) field() (field, error) {
	if p.kind != word {
		return field{}, p.unexpected("a field: " + strings.Join(p.names(), ", "))
	}
	if p.token == "disk" {
		if err := p.next(); err != nil {
			return field{}, err
		}
		if err := p.expect("."); err != nil {
			return field{}, err
		}
		if p.kind != word {
			return field{}, p.unexpected("a field: " + strings.Join(p.names(), ", "))
		}
	}
	for _, f := range p.fields {
		if slices.Contains(f.names, p.token) {
			return f, p.next()
		}
	}
	return field{}, p.fail(p.at, "unknown field %q%s", p.token, spelling.Hint(p.token, p.names()))
}

func (p *parser) names() []string {
	var names []string
	for _, f := range p.fields {
		names = append(names, f.names[0])
	}
	return names
}

func (p *parser) in() (predicate, error) {
	want := p.token
	if err := p.next(); err != nil {
		return nil, err
	}
	if p.kind != word || p.token != "in" {
		return nil, p.unexpected("in, as in \"text\" in links; comparisons begin with the field")
	}
	if err := p.next(); err != nil {
		return nil, err
	}
	at := p.at
	f, err := p.field()
	if err == nil && f.list == nil {
		err = p.fail(at, "%q is not a list, want by-id or links", f.names[0])
	}
	return f.compareText("==", want), err
}

func (p *parser) function(f field) (predicate, error) {
	name, at := p.token, p.at
	if p.kind != word || !f.isText() || !slices.Contains([]string{"startsWith", "endsWith", "contains"}, name) {
		return nil, p.fail(at, "%q has no function %q, want %s", f.names[0], name, f.operators())
	}
	if err := p.next(); err != nil {
		return nil, err
	}
	if err := p.expect("("); err != nil {
		return nil, err
	}
	if p.kind != quoted {
		return nil, p.unexpected("a string in quotes")
	}
	match := f.compareText(name, p.token)
	if err := p.next(); err != nil {
		return nil, err
	}
	return match, p.expect(")")
}

// number reads a product of numbers and units.
func (p *parser) number(f field) (int64, error) {
	at := p.at
	product := 1.
	for {
		n, err := p.factor(f)
		if err != nil {
			return 0, err
		}
		product *= n
		if ok, err := p.accept("*"); err != nil {
			return 0, err
		} else if !ok {
			break
		}
	}
	if product = math.Round(product); product >= 1<<62 {
		return 0, p.fail(at, "the number is too large")
	}
	return int64(product), nil
}

func (p *parser) factor(f field) (float64, error) {
	n := 1.
	switch p.kind {
	case numeral:
		var err error
		if n, err = strconv.ParseFloat(p.token, 64); err != nil {
			return 0, p.fail(p.at, "%q is not a number", p.token)
		}
		touching := p.pos
		if err := p.next(); err != nil {
			return 0, err
		}
		if p.kind == word && p.token == "u" && p.at == touching { // an unsigned number
			return n, p.next()
		}
		if p.kind != word {
			return n, nil
		}
	case word:
	default:
		return 0, p.unexpected(fmt.Sprintf("a number, as %q is one", f.names[0]))
	}
	size := unit(p.token)
	if size == 0 {
		const units = "KB, MB, GB, TB, PB, KiB, MiB, GiB, TiB, PiB"
		return 0, p.fail(p.at, "unknown unit %q, want one of %s", p.token, units)
	}
	return n * size, p.next()
}
