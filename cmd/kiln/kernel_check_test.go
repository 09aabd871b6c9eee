package main

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"go.yaml.in/yaml/v4"

	"github.com/kilnhq/kiln/kernel/hardening"
)

// runKernelCheck runs 'kiln kernel check' and returns what it writes and its exit
// code.
func runKernelCheck(t *testing.T, args ...string) (out string, code int, err error) {
	t.Helper()
	root := newRoot()
	var b bytes.Buffer
	root.SetOut(&b)
	root.SetErr(io.Discard)
	root.SetArgs(append([]string{"kernel", "check"}, args...))
	err = root.ExecuteContext(t.Context())
	return b.String(), exitCode(context.Background(), err), err
}

// writeKernelConfig writes a configuration with a few lines, and without most.
func writeKernelConfig(t *testing.T, text string) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "config")
	if err := os.WriteFile(file, []byte("# Linux/x86 6.12.117 Kernel Configuration\n"+text), 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}

// The lines of the report that are about one thing, as people see them.
func TestKernelCheckTable(t *testing.T) {
	file := writeKernelConfig(t, "CONFIG_X86_64=y\nCONFIG_STRICT_KERNEL_RWX=y\nCONFIG_DEVMEM=y\nCONFIG_SLAB_MERGE_DEFAULT=y\n")
	out, code, err := runKernelCheck(t, "--config", file, "--cmdline", `slab_nomerge dyndbg="a b" nokaslr`, "--all")
	if code != 0 {
		t.Fatal(err)
	}
	var got []string
	for l := range strings.Lines(out) {
		l = strings.Join(strings.Fields(l), " ")
		for _, about := range []string{"VERDICT", "STRICT_KERNEL_RWX", " DEVMEM", "SLAB_MERGE", "nokaslr", " ARM64_BTI ", " CFI_CLANG y", "UBSAN_TRAP", "Linux 6.12.117"} {
			if strings.Contains(l, about) {
				got = append(got, l)
			}
		}
	}
	want := []string{
		"VERDICT KIND NAME WANT FOUND REASON",
		"ok config STRICT_KERNEL_RWX y or CONFIG_DEBUG_RODATA=y y the kernel's code cannot be written, its data not executed",
		"ok config SLAB_MERGE_DEFAULT is not set or slab_nomerge or slub_nomerge slab_nomerge caches of the same size stay apart",
		"n/a config UBSAN_TRAP y - without CONFIG_UBSAN_BOUNDS=y, which is not set",
		"fail config DEVMEM is not set y would give root the physical memory",
		"n/a config CFI_CLANG y - without CONFIG_CC_IS_CLANG=y, which is not set",
		"n/a config ARM64_BTI y - only on arm64",
		"fail cmdline nokaslr is not set is set would make the kernel's address known",
		"Linux 6.12.117 for amd64: ",
	}
	if len(got) == 0 || !strings.HasPrefix(got[len(got)-1], want[len(want)-1]) || !slices.Equal(got[:len(got)-1], want[:len(want)-1]) {
		t.Errorf("%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	out, _, _ = runKernelCheck(t, "--config", file)
	if strings.Contains(out, "\nok ") || strings.Contains(out, "\nn/a ") || !strings.Contains(out, "\nfail ") || strings.Contains(out, "cmdline") {
		t.Errorf("without --all and --cmdline: %s", out)
	}
}

func TestKernelCheckDocuments(t *testing.T) {
	file := writeKernelConfig(t, "CONFIG_X86_64=y\n")
	out, code, err := runKernelCheck(t, "--config", file, "-o", "json", "--strict")
	var r, y hardening.Report
	if code != exitRefused || !strings.Contains(err.Error(), " recommendations are not met") || json.Unmarshal([]byte(out), &r) != nil || r.Failed == 0 || len(r.Results) == 0 {
		t.Errorf("code %d, %v: %s", code, err, out)
	}
	if strings.Contains(out, `"sysctl"`) || r.Arch != "amd64" || r.Release != "6.12.117" {
		t.Errorf("%+v", r)
	}
	out, _, err = runKernelCheck(t, "--config", file, "-o", "yaml")
	var doc map[string]any
	if err != nil || yaml.Unmarshal([]byte(out), &doc) != nil {
		t.Fatalf("%v: %s", err, out)
	}
	data, err := json.Marshal(doc)
	if err != nil || json.Unmarshal(data, &y) != nil || y.Failed != r.Failed || !slices.Equal(y.Results, r.Results) {
		t.Errorf("%v: %s", err, out)
	}
}

func TestKernelCheckErrors(t *testing.T) {
	good, bad, other := writeKernelConfig(t, "CONFIG_X86_64=y\n"), writeKernelConfig(t, "hello\n"), writeKernelConfig(t, "CONFIG_RISCV=y\n")
	for _, tc := range []struct {
		args []string
		code int
		text string
	}{
		{[]string{"--config", filepath.Join(t.TempDir(), "none")}, exitNotFound, "no such file"},
		{[]string{"--base", filepath.Join(t.TempDir(), "none")}, exitNotFound, "build one with 'kiln base build'"},
		{[]string{"--config", bad}, exitRefused, bad + ": not a kernel configuration: no line CONFIG_NAME=VALUE in it"},
		{[]string{"--config", other}, exitRefused, "not a kernel configuration for a known architecture: want amd64 or arm64"},
		{[]string{"--config", good, "--arch", "arm64"}, exitRefused, "not a kernel configuration for arm64: it is for amd64"},
		{[]string{"--config", good, "--base", "x"}, exitUsage, "--config and --base, want one of them"},
		{[]string{"--config", good, "--profile", "x"}, exitUsage, "--config and --profile, want one of them"},
		{[]string{"--cmdline", "x", "--profile", "x"}, exitUsage, "--cmdline and --profile, want one of them"},
		{[]string{"--config", good, "-o", "xml"}, exitUsage, `--output "xml", want table, json or yaml`},
		{[]string{"x"}, exitUsage, "no arguments"},
	} {
		if _, code, err := runKernelCheck(t, tc.args...); code != tc.code || err == nil || !strings.Contains(err.Error(), tc.text) {
			t.Errorf("%v: %d, %v; want %d, %q", tc.args, code, err, tc.code, tc.text)
		}
	}
}
