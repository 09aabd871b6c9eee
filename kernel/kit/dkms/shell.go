package dkms

import (
	"errors"
	"fmt"
	"regexp"
	"strconv"
	"strings"
)

// Limits, far above what real files have.
const (
	maxIndex  = 4096
	maxVars   = 4 * maxIndex
	maxValue  = 64 << 10
	maxNested = 100
)

// value is what a variable holds.
type value struct {
	text        string
	known       bool // text is what bash would make of it
	conditional bool // may not have been assigned
	line        int
}

type parser struct {
	src  string
	pos  int
	vars map[string]value
	lost []string // assignments to modules with an index that is not known

	depth   int  // of compound commands
	parens  int  // that are open
	guarded bool // behind && or ||

	counted, lines int // position up to which newlines were counted
}

// line is the number of the current line.
func (p *parser) line() int {
	p.lines += strings.Count(p.src[p.counted:p.pos], "\n")
	p.counted = p.pos
	return 1 + p.lines
}

var assignment = regexp.MustCompile(`^([A-Za-z_][A-Za-z0-9_]*)(?:\[([^\]\n]*)\])?(\+?)=`)

// parse goes through the commands. Between two it stands behind a separator.
func (p *parser) parse() error {
	start := true // of a command
	for p.pos < len(p.src) {
		switch c := p.src[p.pos]; c {
		case '\n', ';':
			start, p.guarded = true, false
			p.pos++
		case '&', '|':
			start = true
			p.guarded = strings.HasPrefix(p.src[p.pos:], "&&") || strings.HasPrefix(p.src[p.pos:], "||")
			p.pos++
			if p.guarded {
				p.pos++
			}
		case ' ', '\t', '\r', '<', '>':
			p.pos++
		case '(':
			p.parens++
			start = true
			p.pos++
		case ')': // or behind a pattern of case
			p.parens = max(p.parens-1, 0)
			start = true
			p.pos++
		case '#':
			p.comment()
		default:
			if c == '\\' && strings.HasPrefix(p.src[p.pos:], "\\\n") {
				p.pos += 2
				continue
			}
			from := p.pos
			if m := assignment.FindStringSubmatch(p.src[p.pos:]); start && m != nil {
				p.pos += len(m[0])
				if err := p.assign(m[1], m[2], m[3] == "+"); err != nil {
					return err
				}
				continue
			}
			word, err := p.word()
			if err != nil {
				return err
			}
			if p.pos == from {
				return fmt.Errorf("unexpected %q", c)
			}
			if start {
				start = p.keyword(word)
			}
		}
	}
	return nil
}

func (p *parser) comment() {
	if i := strings.IndexByte(p.src[p.pos:], '\n'); i >= 0 {
		p.pos += i
	} else {
		p.pos = len(p.src)
	}
}

// keyword keeps account of compound commands and says whether a command starts
// behind the word.
func (p *parser) keyword(word string) bool {
	switch word {
	case "if", "while", "until", "for", "select", "case", "{":
		p.depth++
	case "fi", "done", "esac", "}":
		p.depth = max(p.depth-1, 0)
		return false
	case "then", "else", "elif", "do", "!", "export", "declare", "readonly", "typeset":
	default:
		return false
	}
	return word != "for" && word != "select" && word != "case"
}

// assign takes the value behind NAME= or NAME[index]=.
func (p *parser) assign(name, index string, add bool) error {
	line := p.line()
	if p.pos < len(p.src) && p.src[p.pos] == '(' {
		return p.assignList(name, line)
	}
	raw, err := p.word()
	if err != nil {
		return err
	}
	i, ok := 0, true
	if index != "" {
		if i, ok = p.sum(index); ok && (i < 0 || i > maxIndex) {
			return fmt.Errorf("%s[%s]: index %d, want at most %d", name, index, i, maxIndex)
		}
	}
	if !ok {
		p.lose(name, line)
		return nil
	}
	v := p.expand(raw)
	if add {
		old := p.at(name, i)
		v.text, v.known = old.text+v.text, v.known && old.known
	}
	return p.set(element(name, i), v, line)
}

// assignList takes the value of NAME=(word word …).
func (p *parser) assignList(name string, line int) error {
	p.pos++
	for i := 0; ; {
		for p.pos < len(p.src) && strings.IndexByte(" \t\r\n", p.src[p.pos]) >= 0 {
			p.pos++
		}
		if p.pos == len(p.src) {
			return errors.New("parenthesis is not closed")
		}
		switch p.src[p.pos] {
		case ')':
			p.pos++
			return nil
		case '#':
			p.comment()
			continue
		}
		from := p.pos
		raw, err := p.word()
		if err != nil {
			return err
		}
		if p.pos == from {
			return fmt.Errorf("unexpected %q in a list", p.src[p.pos])
		}
		if i > maxIndex {
			return fmt.Errorf("%s: more than %d elements", name, maxIndex)
		}
		v := p.expand(raw)
		if strings.ContainsAny(raw, "$`*?") { // may be no word or several
			p.lose(name, line)
		}
		if err := p.set(element(name, i), v, line); err != nil {
			return err
		}
		i++
	}
}

func (p *parser) set(key string, v value, line int) error {
	if len(v.text) > maxValue {
		return fmt.Errorf("value of %s: more than %d bytes", key, maxValue)
	}
	if len(p.vars) >= maxVars {
		return fmt.Errorf("more than %d variables", maxVars)
	}
	v.line, v.conditional = line, p.depth > 0 || p.parens > 0 || p.guarded
	p.vars[key] = v
	return nil
}

// lose remembers that a module may have been declared at an unknown index.
func (p *parser) lose(name string, line int) {
	if name == "BUILT_MODULE_NAME" && len(p.lost) < maxIndex {
		p.lost = append(p.lost, fmt.Sprintf("%s in line %d", name, line))
	}
}

// word reads a word with its quotes.
func (p *parser) word() (string, error) {
	from := p.pos
	for p.pos < len(p.src) {
		switch c := p.src[p.pos]; c {
		case ' ', '\t', '\r', '\n', ';', '&', '|', '(', ')', '<', '>':
			return p.src[from:p.pos], nil
		default:
			if err := p.part(0); err != nil {
				return "", err
			}
		}
	}
	return p.src[from:p.pos], nil
}

// part skips one character, or a quotation or expansion that begins here.
func (p *parser) part(nested int) error {
	rest := p.src[p.pos:]
	switch {
	case rest[0] == '\\':
		p.pos = min(p.pos+2, len(p.src))
	case rest[0] == '\'':
		i := strings.IndexByte(rest[1:], '\'')
		if i < 0 {
			return errors.New("quotation is not closed")
		}
		p.pos += i + 2
	case rest[0] == '"':
		return p.until('"', 1, nested)
	case rest[0] == '`':
		return p.until('`', 1, nested)
	case strings.HasPrefix(rest, "$("):
		return p.until(')', 2, nested)
	case strings.HasPrefix(rest, "${"):
		return p.until('}', 2, nested)
	default:
		p.pos++
	}
	return nil
}

// until skips n characters and then everything up to and with the closing one.
func (p *parser) until(closing byte, n, nested int) error {
	if nested > maxNested {
		return fmt.Errorf("quotations nested more than %d deep", maxNested)
	}
	p.pos += n
	for p.pos < len(p.src) {
		switch c := p.src[p.pos]; {
		case c == closing:
			p.pos++
			return nil
		case c == '(' && closing == ')':
			if err := p.until(')', 1, nested+1); err != nil {
				return err
			}
		case c == '\'' && closing == '"':
			p.pos++ // no quotation within a quotation
		default:
			if err := p.part(nested + 1); err != nil {
				return err
			}
		}
	}
	return fmt.Errorf("%q is missing", closing)
}

// variable matches $x, ${x} and ${x[index]} at the beginning.
var variable = regexp.MustCompile(`^\$(?:([A-Za-z_][A-Za-z0-9_]*)|\{([A-Za-z_][A-Za-z0-9_]*)(?:\[([^\]}]*)\])?\})`)

// expand removes the quotes of a word and puts in what its variables hold.
// Something else than variables and sums makes the value unknown.
func (p *parser) expand(raw string) value {
	var b strings.Builder
	known, double := true, false
	for i := 0; i < len(raw) && b.Len() <= maxValue; {
		rest := raw[i:]
		switch c := rest[0]; {
		case c == '\'' && !double:
			j := strings.IndexByte(rest[1:], '\'')
			if j < 0 {
				return value{}
			}
			b.WriteString(rest[1 : 1+j])
			i += j + 2
		case c == '"':
			double = !double
			i++
		case c == '\\':
			if len(rest) > 1 {
				if double && strings.IndexByte("$`\"\\\n", rest[1]) < 0 {
					b.WriteByte('\\')
				}
				if rest[1] != '\n' {
					b.WriteByte(rest[1])
				}
			}
			i += 2
		case strings.HasPrefix(rest, "$(("):
			j := strings.Index(rest, "))")
			n, ok := 0, false
			if j > 0 {
				n, ok = p.sum(rest[3:j])
			}
			if !ok {
				return value{}
			}
			b.WriteString(strconv.Itoa(n))
			i += j + 2
		case c == '$':
			m := variable.FindStringSubmatch(rest)
			if m == nil {
				return value{}
			}
			index, ok := 0, true
			if m[3] != "" {
				index, ok = p.sum(m[3])
			}
			v := p.at(m[1]+m[2], index)
			known = known && ok && v.known
			b.WriteString(v.text)
			i += len(m[0])
		case c == '`':
			return value{}
		default:
			b.WriteByte(c)
			i++
		}
	}
	return value{text: b.String(), known: known}
}

// sum evaluates numbers and variables joined by + and -.
func (p *parser) sum(s string) (int, bool) {
	total, sign := 0, 1
	for term := range strings.FieldsFuncSeq(strings.NewReplacer("+", " + ", "-", " - ").Replace(s), func(r rune) bool { return r == ' ' || r == '\t' }) {
		if term == "+" || term == "-" {
			if term == "-" {
				sign = -1
			}
			continue
		}
		n, err := strconv.Atoi(term)
		if err != nil {
			name := strings.Trim(term, "${}")
			v, ok := p.vars[name]
			if !ok || !v.known {
				return 0, false
			}
			if n, err = strconv.Atoi(v.text); err != nil {
				return 0, false
			}
		}
		if n > 1<<20 || n < -1<<20 || total > 1<<30 || total < -1<<30 {
			return 0, false
		}
		total += sign * n
		sign = 1
	}
	return total, true
}
