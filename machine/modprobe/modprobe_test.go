//go:build linux

package modprobe

import (
	"bytes"
	"reflect"
	"strings"
	"testing"
)

func TestParse(t *testing.T) {
	for _, c := range []struct {
		args string
		want command
		err  string
	}{
		{"-q -- crypto-sha256", command{quiet: true, names: []string{"crypto-sha256"}}, ""}, // the kernel's
		{"wireguard", command{names: []string{"wireguard"}}, ""},
		{"dummy numdummies=2 x=y", command{names: []string{"dummy"}, param: "numdummies=2 x=y"}, ""},
		{"-b -- pci:v1", command{black: true, names: []string{"pci:v1"}}, ""},
		{"-va ip_vs nf_nat", command{names: []string{"ip_vs", "nf_nat"}}, ""},
		{"--all --quiet -n a b", command{quiet: true, show: true, names: []string{"a", "b"}}, ""},
		{"-- -x", command{names: []string{"-x"}}, ""},
		{"-r dummy", command{}, "unknown option -r"},
		{"--remove dummy", command{}, "unknown option --remove"},
		{"-q", command{}, "want the name or alias of a module"},
	} {
		got, err := parse(strings.Fields(c.args))
		if c.err != "" {
			if err == nil || err.Error() != c.err {
				t.Errorf("%s: got error %v, want %s", c.args, err, c.err)
			}
			continue
		}
		if err != nil || !reflect.DeepEqual(got, c.want) {
			t.Errorf("%s: got %+v, %v; want %+v", c.args, got, err, c.want)
		}
	}
}

// A shell takes the quotes away that the kernel wants.
func TestParseQuotes(t *testing.T) {
	c, err := parse([]string{"x", "label=two words", "n=1"})
	if want := `label="two words" n=1`; err != nil || c.param != want {
		t.Errorf("parameters are %s, %v; want %s", c.param, err, want)
	}
}

func TestExit(t *testing.T) {
	var out, errs bytes.Buffer
	if code := Main([]string{"-r", "x"}, &out, &errs); code != 1 || errs.String() != "modprobe: unknown option -r\n" {
		t.Errorf("exit %d, %q", code, errs.String())
	}
	errs.Reset()
	if code := Main([]string{"-q", "--", "kiln-no-such-module"}, &out, &errs); code != 1 || errs.Len() > 0 {
		t.Errorf("exit %d, %q; want 1 and silence", code, errs.String())
	}
}
