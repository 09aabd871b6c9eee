// Package hardening compares a kernel's configuration, its command line and its
// parameters with what the Kernel Self-Protection Project recommends.
//
// The recommendations are the project's "Recommended Settings", with a few of
// what kernel-hardening-checker knows beyond them, and the arguments that turn
// off protections which kernels have by themselves. Each is one that may be met in
// several ways: an option says what is the default, an argument of the command
// line overrides it, and a parameter that is set later may do the same.
package hardening

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/kilnhq/kiln/kernel/kconfig"
)

// A Kind is where a setting is made.
type Kind string

const (
	Config  Kind = "config"  // when the kernel is built
	Cmdline Kind = "cmdline" // when it is started
	Sysctl  Kind = "sysctl"  // while it runs
)

// A Verdict is what became of a check.
type Verdict string

const (
	OK            Verdict = "ok"
	Fail          Verdict = "fail"
	NotApplicable Verdict = "n/a" // to this architecture or version, or without something else
)

// System is a kernel and what is known of it. Checks of what is not known are
// left out.
type System struct {
	Arch    string         // "amd64" or "arm64"; "" is that of Config
	Release string         // as uname -r; "" if unknown: checks of all versions are made
	Config  kconfig.Config // nil: not known
	Args    []string       // words of the command line; nil: not known
	// Sysctl returns the value of a parameter, named as in sysctl(8), and whether
	// there is one. nil: not known.
	Sysctl func(name string) (string, bool)
}

// A Result is a recommendation, and whether it is met.
type Result struct {
	Kind    Kind    `json:"kind"`
	Name    string  `json:"name"` // of the option, argument or parameter
	Want    string  `json:"want"`
	Found   string  `json:"found"`
	Verdict Verdict `json:"verdict"`
	Reason  string  `json:"reason"` // what it is good for, or why it is not applicable
	Source  string  `json:"source"`
}

// A Report is what a check has found.
type Report struct {
	Arch          string   `json:"arch"`
	Release       string   `json:"release"`
	OK            uint32   `json:"ok"`
	Failed        uint32   `json:"failed"`
	NotApplicable uint32   `json:"not_applicable"`
	Results       []Result `json:"results"`
}

// Check compares s with the recommendations.
func Check(s System) Report {
	if s.Arch == "" {
		s.Arch = s.Config.Arch()
	}
	report := Report{Arch: s.Arch, Release: s.Release, Results: []Result{}}
	for _, r := range rules() {
		if !s.knows(r.kind) {
			continue
		}
		result := s.judge(&r)
		switch result.Verdict {
		case OK:
			report.OK++
		case Fail:
			report.Failed++
		case NotApplicable:
			report.NotApplicable++
		}
		report.Results = append(report.Results, result)
	}
	return report
}

func (s *System) knows(k Kind) bool {
	switch k {
	case Config:
		return s.Config != nil
	case Cmdline:
		return s.Args != nil
	}
	return s.Sysctl != nil
}

// judge carries out one rule.
func (s *System) judge(r *rule) Result {
	result := Result{Kind: r.kind, Name: r.name, Want: r.wanted(), Reason: r.why, Source: r.source}
	if reason := s.excuse(r); reason != "" {
		result.Verdict, result.Reason, result.Found = NotApplicable, reason, "-"
		return result
	}
	var met bool
	result.Found, met = s.look(r.fact)
	// What is said at the start or later is what counts.
	for _, f := range r.overrides {
		if found, ok := s.look(f); s.knows(f.kind) && found != absent {
			result.Found, met = f.assigned(found), ok
		}
	}
	for _, f := range r.alternatives {
		if found, ok := s.look(f); !met && ok {
			result.Found, met = f.assigned(found), true
		}
	}
	result.Verdict = Fail
	switch {
	case met:
		result.Verdict = OK
	case r.kind == Sysctl && result.Found == absent:
		result.Verdict, result.Reason = NotApplicable, "this kernel has no such parameter"
	}
	return result
}

// excuse returns why a rule is not applicable, or "".
func (s *System) excuse(r *rule) string {
	if r.arch != "" && r.arch != s.Arch {
		return "only on " + r.arch
	}
	if r.since != "" && s.Release != "" && before(s.Release, r.since) {
		return "since Linux " + r.since
	}
	if r.until != "" && s.Release != "" && !before(s.Release, r.until) {
		return "until Linux " + r.until
	}
	for _, f := range r.needs {
		if found, ok := s.look(f); s.knows(f.kind) && !ok {
			return "without " + f.assigned(f.wanted()) + ", " + f.named(found)
		}
	}
	return ""
}

// absent is what look finds of what is not there.
const absent = "is not set"

// look returns the value that a fact has, and whether that is the wanted one.
// What is not known is not met.
func (s *System) look(f fact) (found string, met bool) {
	if !s.knows(f.kind) {
		return absent, false
	}
	value, is := "", false
	switch f.kind {
	case Config:
		value, is = s.Config[f.name]
	case Cmdline:
		for _, a := range s.Args {
			// Dashes and underscores are the same to the kernel.
			if k, v, _ := strings.Cut(a, "="); strings.ReplaceAll(k, "-", "_") == strings.ReplaceAll(f.name, "-", "_") {
				value, is = v, true
			}
		}
	case Sysctl:
		value, is = s.Sysctl(f.name)
		value = strings.TrimSpace(value)
	}
	met = f.match(value, is)
	if !is {
		return absent, met
	}
	if value == "" {
		return present, met
	}
	return value, met
}

const present = "is set"

// match reports whether a value is one of those wanted.
func (f fact) match(value string, is bool) bool {
	for want := range strings.SplitSeq(f.want, "|") {
		switch {
		case want == unset:
			if !is {
				return true
			}
		case want == set:
			if is {
				return true
			}
		case strings.HasPrefix(want, "!"):
			if value != want[1:] {
				return true
			}
		case !is:
		case strings.HasPrefix(want, ">="):
			least, err := strconv.ParseInt(want[2:], 0, 64)
			got, err2 := strconv.ParseInt(value, 0, 64)
			if err == nil && err2 == nil && got >= least {
				return true
			}
		case want == yes || want == no:
			if boolean(value) == want {
				return true
			}
		case value == want:
			return true
		}
	}
	return false
}

// boolean returns what the kernel makes of a truth value (kstrtobool), "" if it
// is none.
func boolean(value string) string {
	switch strings.ToLower(value) {
	case "1", "on", "y", "yes", "t", "true":
		return yes
	case "0", "off", "n", "no", "f", "false":
		return no
	}
	return ""
}

// before reports whether a release is older than a version such as "5.17".
func before(release, version string) bool {
	a, b := numbers(release), numbers(version)
	for i := range a {
		if a[i] != b[i] {
			return a[i] < b[i]
		}
	}
	return false
}

// numbers returns the up to three numbers that a release begins with.
func numbers(release string) (list [3]int) {
	for i := range list {
		digits := len(release) - len(strings.TrimLeft(release, "0123456789"))
		n, err := strconv.Atoi(release[:digits])
		if err != nil {
			return list
		}
		list[i] = n
		if release = release[digits:]; !strings.HasPrefix(release, ".") {
			return list
		}
		release = release[1:]
	}
	return list
}

// wanted says which values are wanted, for people.
func (f fact) wanted() string {
	var words []string
	for want := range strings.SplitSeq(f.want, "|") {
		switch {
		case want == "": // of an argument that needs none
			continue
		case want == unset:
			want = absent
		case want == set:
			want = present
		case want == yes:
			want = "1"
		case want == no:
			want = "0"
		case strings.HasPrefix(want, ">="):
			want = "at least " + want[2:]
		case strings.HasPrefix(want, "!"):
			want = "not " + want[1:]
		}
		words = append(words, want)
	}
	return strings.Join(words, " or ")
}

// wanted says all ways in which a rule can be met.
func (r *rule) wanted() string {
	text := r.fact.wanted()
	for _, f := range append(r.overrides[:len(r.overrides):len(r.overrides)], r.alternatives...) {
		text += " or " + f.assigned(f.wanted())
	}
	return text
}

// assigned writes a fact with a value as whoever would change it.
func (f fact) assigned(value string) string {
	name := f.name
	if f.kind == Config {
		name = "CONFIG_" + name
	}
	switch value {
	case present:
		return name
	case absent:
		return name + " " + absent
	}
	return fmt.Sprintf("%s=%s", name, value)
}

// named says what was found of a fact, after its name.
func (f fact) named(found string) string {
	if found == absent || found == present {
		return "which " + found
	}
	return "which is " + found
}
