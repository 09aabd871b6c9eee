//go:build linux

package kmsg

import (
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"
)

func TestParse(t *testing.T) {
	for data, want := range map[string]Record{
		"4,339,5140900,-;kilnb: Unknown symbol kilna_level (err -2)\n":           {0, 4, "kilnb: Unknown symbol kilna_level (err -2)", 339, 5140900 * time.Microsecond},
		"6,1,0,-,caller=T1;virtio: a;b\n SUBSYSTEM=virtio\n DEVICE=+virtio:v0\n": {0, 6, "virtio: a;b", 1, 0},
		"15,2,0,-;kiln: r\\xc3\\xa9ady \\x5c\\xzz \\x5":                          {1, 7, `kiln: réady \\xzz \x5`, 2, 0},
	} {
		if got, err := Parse(data); err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("%q: got %+v, %v; want %+v", data, got, err, want)
		}
	}
	for _, data := range []string{"", "4,1,2,-", "x,1,2,-;a", "-1,1;a", "99999999999,1;a"} {
		_, err := Parse(data)
		if err == nil || !strings.Contains(err.Error(), `want "PRIORITY,SEQUENCE,TIME,FLAGS;MESSAGE"`) {
			t.Errorf("%q: got error %v", data, err)
		}
	}
}

// A file stands in for the device: what it held before Open is not read.
func TestLog(t *testing.T) {
	name := filepath.Join(t.TempDir(), "kmsg")
	if err := os.WriteFile(name, []byte("4,1,0,-;old\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	l, err := Open(name)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if got := l.Read(); len(got) != 0 {
		t.Errorf("got %v, want nothing", got)
	}
	f, err := os.OpenFile(name, os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteString("4,2,0,-;new\n"); err != nil {
		t.Fatal(err)
	}
	if got := l.Read(); len(got) != 1 || got[0].Message != "new" {
		t.Errorf("got %v, want the new message", got)
	}
	if _, err := Open(name + "?"); err == nil || !strings.HasPrefix(err.Error(), "open ") {
		t.Errorf("got error %v", err)
	}
}

func FuzzParse(f *testing.F) {
	f.Add("4,339,5140900,-;kilnb: Unknown symbol\\x0a (err -2)\n SUBSYSTEM=x\n")
	f.Fuzz(func(t *testing.T, data string) {
		r, err := Parse(data)
		if err == nil && (r.Level < 0 || r.Level > 7 || r.Facility < 0 || len(r.Message) > len(data)) {
			t.Errorf("%q: %+v", data, r)
		}
	})
}
