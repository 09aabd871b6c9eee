package kit

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// machine are the names of architectures as uname -m prints them, which the
// prefixes of cross compilers begin with.
var machine = map[string]string{"amd64": "x86_64", "arm64": "aarch64"}

// toolchain are the programs that build modules.
type toolchain struct {
	cc     string // C compiler
	prefix string // of the binutils: empty, or that of a cross toolchain
	strip  string
	dwarf  bool // the kernel's CRCs come from debug information
}

// toolchain finds the programs on this machine. The warnings are about a
// compiler that is not the kernel's.
func (k *Kit) toolchain(ctx context.Context) (toolchain, []string, error) {
	c := k.Config
	if c.GCC == 0 {
		return toolchain{}, nil, fmt.Errorf("%w: the kernel was compiled with %q, want gcc", ErrBuild, c.Compiler)
	}
	if c.Host != runtime.GOARCH {
		return toolchain{}, nil, fmt.Errorf("%w: the kit's programs are for %s, this machine is %s; make the kit with linux-kbuild-…_%s.deb",
			ErrBuild, c.Host, runtime.GOARCH, runtime.GOARCH)
	}
	var t toolchain
	suffix := "" // of Debian's packages with cross toolchains
	if c.Arch != c.Host {
		t.prefix = machine[c.Arch] + "-linux-gnu-"
		suffix = "-" + strings.ReplaceAll(machine[c.Arch], "_", "-") + "-linux-gnu"
	}
	t.strip = t.prefix + "strip"
	for _, need := range []struct{ program, pkg string }{
		{"make", "make"}, {"bash", "bash"}, {t.prefix + "ld", "binutils" + suffix}, {t.strip, "binutils" + suffix},
	} {
		if _, err := exec.LookPath(need.program); err != nil {
			return t, nil, missing(need.program, need.pkg)
		}
	}
	var other string
	for _, name := range []string{fmt.Sprintf("%sgcc-%d", t.prefix, c.GCC), t.prefix + "gcc"} {
		if _, err := exec.LookPath(name); err != nil {
			continue
		}
		out, err := exec.CommandContext(ctx, name, "-dumpversion").Output()
		if err != nil {
			return t, nil, fmt.Errorf("%s -dumpversion: %w", name, err)
		}
		version := strings.TrimSpace(string(out))
		t.cc = name
		major, _, _ := strings.Cut(version, ".")
		if n, err := strconv.Atoi(major); err == nil && n == c.GCC {
			return t, nil, nil
		}
		other = fmt.Sprintf("compiling with %s %s, the kernel was compiled with %s; Debian's package gcc-%d%s has the same",
			name, version, c.Compiler, c.GCC, suffix)
	}
	if t.cc == "" {
		return t, nil, missing(fmt.Sprintf("%sgcc-%d", t.prefix, c.GCC), fmt.Sprintf("gcc-%d%s", c.GCC, suffix))
	}
	return t, []string{other}, nil
}

func missing(program, pkg string) error {
	return fmt.Errorf("%w: %s is not installed; Debian's package %s has it", ErrBuild, program, pkg)
}

// killGroup makes the end of the command's context end what it has started, too.
func killGroup(c *exec.Cmd) {
	c.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	c.Cancel = func() error { return syscall.Kill(-c.Process.Pid, syscall.SIGKILL) }
	c.WaitDelay = 5 * time.Second
}

// tail keeps the end of what is written to it.
type tail struct {
	buf  []byte
	also io.Writer
}

const maxTail = 256 << 10

func (t *tail) Write(p []byte) (int, error) {
	t.buf = append(t.buf, p...)
	if n := len(t.buf) - maxTail; n > maxTail {
		t.buf = append(t.buf[:0], t.buf[n:]...)
	}
	if t.also != nil {
		return t.also.Write(p)
	}
	return len(p), nil
}

// lastLines returns the last n lines of s.
func lastLines(s string, n int) string {
	s = strings.TrimRight(s, "\n")
	at := len(s)
	for range n {
		i := strings.LastIndexByte(s[:at], '\n')
		if i < 0 {
			return s
		}
		at = i
	}
	return string(bytes.TrimLeft([]byte(s[at:]), "\n"))
}
