package test

import (
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// milestone is a line that a node prints on its console while it starts:
//
//	kiln: stage=NAME t=SECONDS[ KEY=VALUE…]
//	kiln: module KEY=VALUE… t=SECONDS
//	kiln: note text="…" t=SECONDS
//	kiln: ready KEY=VALUE… t=SECONDS
//	kiln: failed stage=NAME error="…" t=SECONDS
type milestone struct {
	word   string // "", "module", "note", "ready" or "failed"
	fields map[string]string
}

// What to wait for on a console.
var (
	readyLine    = regexp.MustCompile(`(^|\] )kiln: ready `)
	failedLine   = regexp.MustCompile(`(^|\] )kiln: failed `)
	shutdownLine = regexp.MustCompile(`(^|\] )kiln: stage=shutdown `)
)

// parseMilestone parses a line of the console. ok is false if it is none.
func parseMilestone(line string) (m milestone, ok bool, err error) {
	at := strings.Index(line, "kiln: ")
	if at < 0 || at > 0 && !strings.HasSuffix(line[:at], "] ") { // behind a time stamp of the kernel's
		return m, false, nil
	}
	rest := line[at+len("kiln: "):]
	m.fields = map[string]string{}
	if word, after, found := strings.Cut(rest, " "); found && !strings.Contains(word, "=") {
		if !slices.Contains([]string{"module", "note", "ready", "failed"}, word) {
			return m, false, nil // GRUB's choice of a slot, for one
		}
		m.word, rest = word, after
	}
	for rest != "" {
		key, after, found := strings.Cut(rest, "=")
		if !found || key == "" || strings.ContainsAny(key, ` "`) {
			return m, true, fmt.Errorf("%q: want KEY=VALUE at %q", line, rest)
		}
		if _, twice := m.fields[key]; twice {
			return m, true, fmt.Errorf("%q: %s is there twice", line, key)
		}
		var value string
		if strings.HasPrefix(after, `"`) {
			quoted, err := strconv.QuotedPrefix(after)
			if err != nil {
				return m, true, fmt.Errorf("%q: value of %s: %w", line, key, err)
			}
			if value, err = strconv.Unquote(quoted); err != nil {
				return m, true, fmt.Errorf("%q: value of %s: %w", line, key, err)
			}
			rest = after[len(quoted):]
			if rest != "" && rest[0] != ' ' {
				return m, true, fmt.Errorf("%q: %q behind the value of %s", line, rest, key)
			}
			rest = strings.TrimPrefix(rest, " ")
		} else {
			value, rest, _ = strings.Cut(after, " ")
		}
		m.fields[key] = value
	}
	if m.word == "" && m.fields["stage"] == "" {
		return m, false, nil // a remark, for people
	}
	if _, err := strconv.ParseFloat(m.fields["t"], 64); err != nil {
		return m, true, fmt.Errorf("%q: t=%q, want seconds", line, m.fields["t"])
	}
	return m, true, nil
}

// milestones returns those that are on a console.
func milestones(t *testing.T, console string) []milestone {
	t.Helper()
	var all []milestone
	for line := range strings.Lines(console) {
		m, ok, err := parseMilestone(strings.TrimSuffix(line, "\n"))
		if err != nil {
			t.Error(err)
		} else if ok {
			all = append(all, m)
		}
	}
	return all
}

func TestParseMilestone(t *testing.T) {
	for _, tc := range []struct {
		line   string
		word   string
		fields map[string]string
	}{
		{"kiln: stage=root t=1.234", "", map[string]string{"stage": "root", "t": "1.234"}},
		{"[    3.21] kiln: stage=disk t=2 name=vda guid=-", "", map[string]string{"stage": "disk", "t": "2", "name": "vda", "guid": "-"}},
		{"kiln: ready slot=A modules=udp_tunnel,wireguard t=5.678", "ready", map[string]string{"slot": "A", "modules": "udp_tunnel,wireguard", "t": "5.678"}},
		{`kiln: failed stage=layers error="a \"b\" c=d\n" t=0.1`, "failed", map[string]string{"stage": "layers", "error": "a \"b\" c=d\n", "t": "0.1"}},
	} {
		m, ok, err := parseMilestone(tc.line)
		if err != nil || !ok || m.word != tc.word || !maps.Equal(m.fields, tc.fields) {
			t.Errorf("%s: %+v, %v, %v, want %s %v", tc.line, m, ok, err, tc.word, tc.fields)
		}
	}
	for _, line := range []string{"", "Linux version 6.12", "echo kiln: ready t=1", "kiln:", "[    1.0] kiln: extension wireguard: no such device"} {
		if m, ok, err := parseMilestone(line); ok && err == nil {
			t.Errorf("%q: %+v, want none", line, m)
		}
	}
	for line, want := range map[string]string{
		"kiln: ready slot=A":                 `"kiln: ready slot=A": t="", want seconds`,
		"kiln: ready slot=A slot=B t=1":      `"kiln: ready slot=A slot=B t=1": slot is there twice`,
		`kiln: failed stage=x error="a t=1`:  `"kiln: failed stage=x error=\"a t=1": value of error: invalid syntax`,
		`kiln: failed stage=x error="a"b`:    `"kiln: failed stage=x error=\"a\"b": "b" behind the value of error`,
		"kiln: ready slot=A [ 5.0] usb: new": `"kiln: ready slot=A [ 5.0] usb: new": want KEY=VALUE at "[ 5.0] usb: new"`,
	} {
		if _, _, err := parseMilestone(line); fmt.Sprint(err) != want {
			t.Errorf("%q: %v, want %s", line, err, want)
		}
	}
}

// stages returns the names of the stages of a list of milestones.
func stages(list []milestone) []string {
	var names []string
	for _, m := range list {
		if m.word == "" {
			names = append(names, m.fields["stage"])
		}
	}
	return names
}

// list splits a value with commas.
func list(value string) []string {
	if value == "-" {
		return nil
	}
	return slices.Collect(strings.SplitSeq(value, ","))
}
