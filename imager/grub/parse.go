package grub

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
)

// ParseConfig reads what Encode wrote. Anything else in GRUB's language is an
// error that names the line.
func ParseConfig(data []byte) (*Config, error) {
	var p parser
	for i, line := range strings.Split(string(data), "\n") {
		words, err := splitLine(line)
		if err == nil && len(words) > 0 {
			err = p.line(line, words)
		}
		if err != nil {
			return nil, fmt.Errorf("%w: line %d: %w", ErrConfig, i+1, err)
		}
	}
	if p.entry != nil {
		return nil, fmt.Errorf("%w: entry %q has no end", ErrConfig, p.entry.Title)
	}
	if err := p.config.check(); err != nil {
		return nil, err
	}
	return &p.config, nil
}

type parser struct {
	config Config
	entry  *Entry // that is being read
}

func (p *parser) line(line string, words []string) error {
	if p.entry != nil {
		return p.inEntry(words)
	}
	switch {
	case line == serialLine || line == serialInput || line == serialOutput:
		p.config.Serial = true
	case words[0] == "set" && len(words) == 2:
		return p.variable(words[1])
	case words[0] == "menuentry" && len(words) == 3 && words[2] == "{":
		p.entry = &Entry{Title: words[1]}
	default:
		return fmt.Errorf("not understood: %q", line)
	}
	return nil
}

func (p *parser) variable(assignment string) (err error) {
	name, value, _ := strings.Cut(assignment, "=")
	switch name {
	case "default":
		p.config.Default, err = strconv.Atoi(value)
	case "timeout":
		p.config.Timeout, err = strconv.Atoi(value)
	case "fallback": // follows from the default
	default:
		return fmt.Errorf("unknown variable %q", name)
	}
	return err
}

func (p *parser) inEntry(words []string) error {
	switch {
	case words[0] == "}" && len(words) == 1:
		p.config.Entries = append(p.config.Entries, *p.entry)
		p.entry = nil
	case words[0] == "echo":
	case words[0] == "linux" && len(words) >= 2 && p.entry.Linux == "":
		p.entry.Linux = words[1]
		args := make([]string, 0, len(words)-2)
		for _, w := range words[2:] {
			if w == "" {
				return errors.New("an empty kernel argument")
			}
			args = append(args, requote(w))
		}
		p.entry.Args = strings.Join(args, " ")
	case words[0] == "initrd" && len(words) == 2 && p.entry.Initrd == "":
		p.entry.Initrd = words[1]
	default:
		return fmt.Errorf("not understood in an entry: %q", words)
	}
	return nil
}

// splitLine returns the words of a line. It knows single quotes and backslashes,
// and refuses what else is special in GRUB's language.
func splitLine(line string) ([]string, error) {
	var words []string
	var word strings.Builder
	inWord := false
	for i := 0; i < len(line); i++ {
		switch c := line[i]; c {
		case ' ', '\t':
			if inWord {
				words = append(words, word.String())
				word.Reset()
				inWord = false
			}
			continue
		case '\'':
			end := strings.IndexByte(line[i+1:], '\'')
			if end < 0 {
				return nil, fmt.Errorf("a quote without its partner: %s", line[i:])
			}
			word.WriteString(line[i+1:][:end])
			i += 1 + end
		case '\\':
			i++
			if i == len(line) {
				return nil, errors.New("a backslash at the end")
			}
			word.WriteByte(line[i])
		case '"', '$', ';', '|', '&', '<', '>', '#':
			return nil, fmt.Errorf("%q is not understood outside of quotes", c)
		default:
			word.WriteByte(c)
		}
		inWord = true
	}
	if inWord {
		words = append(words, word.String())
	}
	return words, nil
}
