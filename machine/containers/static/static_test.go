package static

import (
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
)

func TestWriteRead(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "d")
	user := uint32(1000)
	c := &Container{Name: "a", Image: "i", User: &user, Env: []string{"SECRET=x"}, MaskedPaths: &[]string{}, StopTimeout: 3}
	if err := Write(dir, c); err != nil {
		t.Fatal(err)
	}
	if fi, err := os.Stat(File(dir, "a")); err != nil || fi.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", fi.Mode(), err)
	}
	if got, err := Read(dir, "a"); err != nil || !reflect.DeepEqual(got, c) {
		t.Errorf("%+v, %v", got, err)
	}
	if err := os.Rename(File(dir, "a"), File(dir, "b")); err != nil {
		t.Fatal(err)
	}
	if _, err := Read(dir, "b"); err == nil || !strings.Contains(err.Error(), `is of container "a", want "b"`) {
		t.Errorf("%v", err)
	}
}

func TestParseEnv(t *testing.T) {
	list, err := parseEnv([]byte("# comment\n\nA=1\n B = x y \nC=\"q\"\nD='\nE=a=b\nF=\r\n"))
	if want := []string{"A=1", "B=x y", "C=q", "D='", "E=a=b", "F="}; err != nil || !reflect.DeepEqual(list, want) {
		t.Errorf("%q, %v", list, err)
	}
	for text, want := range map[string]string{
		"A=1\nsecret\n": "line 2: want KEY=VALUE", "=x": "line 1", "A B=x": "line 1", "A=\x00": "a zero byte", strings.Repeat("x", maxEnv+1): "more than 65536 bytes",
	} {
		if _, err := parseEnv([]byte(text)); err == nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "secret") {
			t.Errorf("%.20q: %v, want %s", text, err, want)
		}
	}
	if list, err := ReadEnv(""); list != nil || err != nil {
		t.Errorf("%v, %v", list, err)
	}
	if _, err := ReadEnv(filepath.Join(t.TempDir(), "none")); err == nil {
		t.Error("a file that is not there is read")
	}
}

func FuzzParseEnv(f *testing.F) {
	f.Add([]byte("A=1\n# x\nB='y'\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		list, err := parseEnv(data)
		if err != nil && list != nil {
			t.Errorf("%q with %v", list, err)
		}
		for _, v := range list {
			if key, _, ok := strings.Cut(v, "="); !ok || key == "" || strings.ContainsAny(v, "\x00\n") {
				t.Errorf("%q", v)
			}
		}
	})
}
