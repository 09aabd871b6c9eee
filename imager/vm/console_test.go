package vm

import (
	"context"
	"errors"
	"io"
	"regexp"
	"strings"
	"testing"
	"testing/iotest"
	"time"
)

// print returns a console on which text was printed; end is whether the machine
// is off.
func printed(text string, end bool) *console {
	c := newConsole(fatal)
	c.add([]byte(text), end)
	return c
}

func TestWait(t *testing.T) {
	ready := regexp.MustCompile(`^kiln: ready `)
	stage := regexp.MustCompile(`^kiln: stage=`)
	c := printed("SeaBIOS\r\n\x1b[2J\x1b[01;01Hkiln: stage=root t=1.0\r\nnoise\r\nold\rkiln: ready x=1\r\nkiln: ready x=2\r\n", false)
	pos := 0
	for _, tc := range []struct {
		until []*regexp.Regexp
		want  string
	}{
		{[]*regexp.Regexp{ready, stage}, "kiln: stage=root t=1.0"},
		{[]*regexp.Regexp{ready}, "kiln: ready x=1"},
		{[]*regexp.Regexp{stage, ready}, "kiln: ready x=2"},
	} {
		if got, err := c.wait(t.Context(), &pos, tc.until); err != nil || got != tc.want {
			t.Errorf("%v: %q, %v, want %q", tc.until, got, err, tc.want)
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
	defer cancel()
	_, err := c.wait(ctx, &pos, []*regexp.Regexp{ready})
	if !errors.Is(err, context.DeadlineExceeded) || !strings.HasPrefix(err.Error(), "the machine has not printed ^kiln: ready : context deadline exceeded\n\tSeaBIOS\n") {
		t.Errorf("wait for what does not come: %v", err)
	}
	c.add(nil, true)
	_, err = c.wait(t.Context(), &pos, []*regexp.Regexp{ready, stage})
	if !errors.Is(err, ErrEnded) || !strings.HasPrefix(err.Error(), "the machine ended before it printed ^kiln: ready  or ^kiln: stage=\n") {
		t.Errorf("wait for what is off: %v", err)
	}
}

func TestFatal(t *testing.T) {
	for _, line := range []string{
		"UEFI Interactive Shell v2.2",
		"BdsDxe: failed to load Boot0001 \"UEFI Misc Device\" from PciRoot(0x0)/Pci(0x3,0x0): Access Denied",
		"BdsDxe: No bootable option or device was found.",
		"No bootable device.",
		"../src/boot/efi/boot.c:2576@image_start: Error loading \\EFI\\Linux\\x.efi: Access denied",
		"linux.c:153@linux_exec: Error starting kernel image: Out of resources",
		"grub rescue> ",
		"error: file `/A/vmlinuz' not found.",
		"error: no such device: BOOT.",
		"error: you need to load the kernel first.",
		"[    0.432432] Initramfs unpacking failed: write error",
		"[    1.100000] Kernel panic - not syncing: VFS: Unable to mount root fs",
		"[    1.100000] Oops: int3: 0000 [#1] PREEMPT SMP NOPTI",
		`kiln: failed stage=layers error="00-rootfs.sqsh: short" t=1.2`,
	} {
		pos := 0
		_, err := printed("before\n"+line+"\n", true).wait(t.Context(), &pos, []*regexp.Regexp{regexp.MustCompile("ready")})
		var failed *FailedError
		if !errors.As(err, &failed) || failed.Line != line {
			t.Errorf("%s: %v, want a FailedError", line, err)
			continue
		}
		if want := "the machine failed: " + line + "\n\tbefore\n\t" + line; err.Error() != want {
			t.Errorf("%s: %q, want %q", line, err, want)
		}
		pos = 0 // who waits for a failure gets it
		if got, err := printed(line+"\n", false).wait(t.Context(), &pos, []*regexp.Regexp{regexp.MustCompile(".")}); got != line || err != nil {
			t.Errorf("%s waited for: %q, %v", line, got, err)
		}
	}
	for _, line := range []string{
		"BdsDxe: loading Boot0001 \"UEFI Misc Device\" from PciRoot(0x0)/Pci(0x3,0x0)",
		"Booting from Hard Disk...",
		"[    0.1] pci 0000:00:1f.0: quirk: error: none",
		"kiln: stage=disk t=3.2 name=vda",
	} {
		if fatal.MatchString(line) {
			t.Errorf("%s is taken for a failure", line)
		}
	}
}

// A prompt has no end of line; half a line is none.
func TestFatalPrompt(t *testing.T) {
	var failed *FailedError
	pos := 0
	c := printed("grub rescue> ", false)
	if _, err := c.wait(t.Context(), &pos, nil); !errors.As(err, &failed) || failed.Line != "grub rescue> " {
		t.Errorf("%v, want the prompt to be a failure", err)
	}
	c, pos = printed("Kernel panic", false), 0
	time.AfterFunc(50*time.Millisecond, func() { c.add([]byte(" - not syncing: why\nmore\n"), false) })
	_, err := c.wait(t.Context(), &pos, nil)
	if !errors.As(err, &failed) || failed.Line != "Kernel panic - not syncing: why" || !strings.HasSuffix(failed.Context, "\n\tmore") {
		t.Errorf("%v, want the whole line and what follows", err)
	}
}

// However the bytes arrive, the lines are the same.
func TestFollow(t *testing.T) {
	const text = "one\r\n\x1b[0mtwo\n\x1b[1;37;40mthree\x1b[m"
	for name, r := range map[string]io.Reader{
		"at once": strings.NewReader(text), "bytes": iotest.OneByteReader(strings.NewReader(text)), "half": iotest.HalfReader(strings.NewReader(text)),
	} {
		c := newConsole(fatal)
		var copy strings.Builder
		c.follow(r, &copy)
		if got := c.String(); got != "one\ntwo\nthree" {
			t.Errorf("%s: %q", name, got)
		}
		if copy.String() != text {
			t.Errorf("%s: copy is %q", name, copy.String())
		}
		if _, _, done, _ := c.state(0); !done {
			t.Errorf("%s: not done", name)
		}
	}
}

func TestConsoleIsBounded(t *testing.T) {
	c := newConsole(fatal)
	block := strings.Repeat(strings.Repeat("x", 1023)+"\n", 1024)
	for range 20 {
		c.add([]byte(block), false)
	}
	c.add([]byte(strings.Repeat("y", 100<<10)), false) // without an end of line
	if n := len(c.String()); n > maxConsole+1024 {
		t.Errorf("%d bytes are kept, want at most %d", n, maxConsole)
	}
	if _, tail, _, _ := c.state(0); tail != "" {
		t.Errorf("a line of %d bytes", len(tail))
	}
}
