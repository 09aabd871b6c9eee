package grub

import (
	"bytes"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/kilnhq/kiln/internal/oracle"
)

var slotEntry = Entry{Title: "kiln 1 (it's $x), slot A", Linux: "/A/vmlinuz", Initrd: "/A/initramfs", Args: `kiln.slot=A dyndbg="file a +p" quiet`}

func TestEncodeSlot(t *testing.T) {
	const want = `echo 'Loading kiln 1 (it'\''s $x), slot A'
if linux '/A/vmlinuz' 'kiln.slot=A' 'dyndbg=file a +p' 'quiet'; then
	if initrd '/A/initramfs'; then
		boot
	fi
fi
`
	got, err := EncodeSlot(slotEntry)
	if err != nil || string(got) != want {
		t.Errorf("%v\n%s\nwant\n%s", err, got, want)
	}
	bare := slotEntry
	bare.Initrd, bare.Args = "", ""
	for _, e := range []Entry{slotEntry, bare} {
		b, err := EncodeSlot(e)
		if err != nil {
			t.Fatal(err)
		}
		if got, err := ParseSlot(b); err != nil || got != e {
			t.Errorf("%+v, %v; want %+v", got, err, e)
		}
		scriptCheck(t, b)
	}
	long := slotEntry
	long.Title = strings.Repeat("t", MaxSlotConfig)
	if _, err := EncodeSlot(long); !errors.Is(err, ErrConfig) || !strings.Contains(err.Error(), "want at most 8192") {
		t.Errorf("a long title: %v", err)
	}
	if _, err := EncodeSlot(Entry{Title: "x", Linux: "A"}); !errors.Is(err, ErrConfig) {
		t.Errorf("a relative path: %v", err)
	}
}

func scriptCheck(t *testing.T, script []byte) {
	t.Helper()
	cmd := exec.Command(oracle.Tool(t, "grub-script-check"))
	cmd.Stdin = bytes.NewReader(script)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("%v\n%s\n%s", err, out, script)
	}
}

func TestParseSlotRefuses(t *testing.T) {
	good, err := EncodeSlot(slotEntry)
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct{ text, want string }{
		{"", "slot: a title"},
		{strings.Replace(string(good), "boot", "reboot", 1), "it is not as it was written"},
		{string(good) + "set x=1\n", "it is not as it was written"},
		{string(good[:len(good)-1]), "it is not as it was written"},
		{strings.Replace(string(good), "'quiet'", "$quiet", 1), "line 2: '$' is not understood"},
		{strings.Replace(string(good), "if linux", "if multiboot", 1), `line 2: not understood in an entry: ["multiboot"`},
		{strings.Repeat("#", MaxSlotConfig+1), "8193 bytes"},
	} {
		if _, err := ParseSlot([]byte(tt.text)); !errors.Is(err, ErrConfig) || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%q: %v, want %q", tt.text, err, tt.want)
		}
	}
}

func TestSlotsConfig(t *testing.T) {
	scriptCheck(t, SlotsConfig(true))
	if plain := SlotsConfig(false); bytes.Contains(plain, []byte("serial")) || !bytes.HasSuffix(SlotsConfig(true), plain) {
		t.Error("the serial port is not all that differs")
	}
}

// TestTransitions goes through an upgrade that is confirmed and one that fails.
func TestTransitions(t *testing.T) {
	e := Env{{"mine", "1"}}
	step := func(next Env, err error, want State) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		a, err := e.Encode()
		if err != nil {
			t.Fatal(err)
		}
		b, err := next.Encode()
		if err != nil {
			t.Fatal(err)
		}
		if bytes.Equal(a, b) || !bytes.Equal(a[sectorSize:], b[sectorSize:]) {
			t.Error("want the first sector to change, and nothing else")
		}
		if got := next.State(); got != want {
			t.Errorf("%v is %+v, want %+v", next, got, want)
		}
		if next.Get("mine") != "1" {
			t.Errorf("%v: another variable is lost", next)
		}
		e = next
	}
	next, err := e.Try(SlotB, 3)
	step(next, err, State{Slot: "A", Trial: "B", Tries: 3})
	next, err = e.Confirm(SlotB)
	step(next, err, State{Slot: "B"})
	next, err = e.Try(SlotA, MaxTries)
	step(next, err, State{Slot: "B", Trial: "A", Tries: 9})
	step(e.With("trial", "").With("tries", "").With("failed", "A"), nil, State{Slot: "B", Failed: "A"})
	next, err = e.Try(SlotA, 1)
	step(next, err, State{Slot: "B", Trial: "A", Tries: 1})
	next, err = e.Confirm(SlotB)
	step(next, err, State{Slot: "B"})
	for _, tt := range []struct {
		slot  string
		tries int
		want  string
	}{{"B", 3, "slot B is the one to go back to; try slot A"}, {"A", 0, "0 tries, want 1 to 9"}, {"A", 10, "10 tries"}, {"C", 1, `slot "C", want A or B`}} {
		if _, err := e.Try(tt.slot, tt.tries); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%+v: %v", tt, err)
		}
	}
	if _, err := e.Confirm(""); err == nil {
		t.Error("confirmed no slot")
	}
	for _, garbage := range []Env{nil, {{"slot", "C"}, {"trial", "A"}, {"tries", "3"}}, {{"failed", "x"}}} {
		if got := garbage.State(); got != (State{Slot: "A"}) {
			t.Errorf("%v is %+v", garbage, got)
		}
	}
	if got := (Env{{"trial", "B"}, {"tries", "03"}}).State(); got != (State{Slot: "A", Trial: "B"}) {
		t.Errorf("tries 03: %+v", got)
	}
}

var awkward = Env{{"slot", "A"}, {"_x9", `back\slash\\`}, {"lines", "one\ntwo\n"}, {"empty", ""}, {"is", "a=b #"}}

// TestEditenv has grub-editenv list what Encode wrote, and reads what it wrote.
func TestEditenv(t *testing.T) {
	editenv := oracle.Tool(t, "grub-editenv")
	name := filepath.Join(t.TempDir(), "grubenv")
	b, err := awkward.Encode()
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(name, b, 0o644); err != nil {
		t.Fatal(err)
	}
	var want string
	for _, v := range awkward {
		want += v.Name + "=" + v.Value + "\n"
	}
	if out, err := exec.Command(editenv, name, "list").Output(); err != nil || string(out) != want {
		t.Errorf("%v\n%s\nwant\n%s", err, out, want)
	}
	if out, err := exec.Command(editenv, name, "create").CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	args := []string{name, "set"}
	for _, v := range awkward {
		args = append(args, v.Name+"="+v.Value)
	}
	if out, err := exec.Command(editenv, args...).CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	if b, err = os.ReadFile(name); err != nil {
		t.Fatal(err)
	}
	if got, err := ParseEnv(b); err != nil || !reflect.DeepEqual(got, awkward) {
		t.Errorf("%q, %v; want %q", got, err, awkward)
	}
}

func TestEnvRefuses(t *testing.T) {
	for _, tt := range []struct {
		env  Env
		want string
	}{
		{Env{{"1", "x"}}, `variable name "1"`},
		{Env{{"", "x"}}, `variable name ""`},
		{Env{{"a", "x"}, {"a", "y"}}, "variable a is there twice"},
		{Env{{"a", "x\x00"}}, "the value of a has a NUL"},
		{Env{{"a", strings.Repeat("x", 512-len(envSignature)-2)}}, "take 513 bytes, 512 fit"},
	} {
		if _, err := tt.env.Encode(); !errors.Is(err, ErrEnv) || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%q: %v, want %q", tt.env, err, tt.want)
		}
	}
	if _, err := (Env{{"a", strings.Repeat("x", 512-len(envSignature)-3)}}).Encode(); err != nil {
		t.Error(err)
	}
	pad := func(s string) string { return s + strings.Repeat("#", EnvSize-len(s)) }
	for _, tt := range []struct{ block, want string }{
		{"", "0 bytes, want 1024"},
		{strings.Repeat("\x00", EnvSize), `it begins with "\x00`},
		{pad(envSignature + "novalue\n"), `"novalue" is no variable`},
		{pad(envSignature + "a b=c\n"), `"a b=c" is no variable`},
		{pad(envSignature + "a=b"), "the value of a has no end"},
		{pad(envSignature + "a=b\\"), "the value of a has no end"},
		{pad(envSignature + "a=b\na=c\n"), "variable a is there twice"},
	} {
		if _, err := ParseEnv([]byte(tt.block)); !errors.Is(err, ErrEnv) || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%.40q: %v, want %q", tt.block, err, tt.want)
		}
	}
}

func FuzzParseEnv(f *testing.F) {
	b, err := awkward.Encode()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b[len(envSignature):])
	f.Add([]byte("# comment\na=b\\\n#\n"))
	f.Fuzz(func(t *testing.T, body []byte) {
		b := append([]byte(envSignature), body...)
		b = append(b, bytes.Repeat([]byte{'#'}, max(0, EnvSize-len(b)))...)[:EnvSize]
		e, err := ParseEnv(b)
		if err != nil {
			if !errors.Is(err, ErrEnv) {
				t.Errorf("%v is no ErrEnv", err)
			}
			return
		}
		again, err := e.Encode()
		if err != nil { // too large, or NUL
			return
		}
		if got, err := ParseEnv(again); err != nil || !reflect.DeepEqual(got, e) {
			t.Errorf("%q became %q, %v", e, got, err)
		}
		if s := e.State(); s.Slot == s.Trial || s.Tries > MaxTries {
			t.Errorf("%q: %+v", e, s)
		}
	})
}

func FuzzParseSlot(f *testing.F) {
	b, err := EncodeSlot(slotEntry)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Fuzz(func(t *testing.T, b []byte) {
		e, err := ParseSlot(b)
		if err != nil {
			if !errors.Is(err, ErrConfig) {
				t.Errorf("%v is no ErrConfig", err)
			}
			return
		}
		if again, err := EncodeSlot(e); err != nil || !bytes.Equal(again, b) {
			t.Errorf("%s\nbecame\n%s, %v", b, again, err)
		}
	})
}
