// Package oracle finds the independent programs that judge kiln's output in
// tests: sgdisk, e2fsck, unsquashfs and the like.
package oracle

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

// requireEnv, when set to 1, makes a missing program or privilege a failure.
// 'make test' sets it, so that a check is only ever skipped by hand.
const requireEnv = "KILN_REQUIRE_ORACLES"

// Tool returns the path of the named program, looking in the sbin directories
// too. If it is not installed the test is skipped, or fails if oracles are
// required.
func Tool(t testing.TB, name string) string {
	t.Helper()
	if p, err := exec.LookPath(name); err == nil {
		return p
	}
	for _, dir := range []string{"/usr/sbin", "/sbin", "/usr/local/sbin"} {
		p := filepath.Join(dir, name)
		if _, err := os.Stat(p); err == nil {
			return p
		}
	}
	missing(t, "program %s is not installed", name)
	return ""
}

// Root skips the test unless it runs with the privilege to mount.
func Root(t testing.TB) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("SKIPPED: needs root to mount")
	}
}

// File returns path if it exists; otherwise it skips or fails like Tool.
func File(t testing.TB, path string) string {
	t.Helper()
	if _, err := os.Stat(path); err != nil {
		missing(t, "%v", err)
	}
	return path
}

// Artifact returns the path in the environment variable, of something that
// 'make test' has built before. If there is none it skips or fails like Tool.
func Artifact(t testing.TB, env string) string {
	t.Helper()
	path := os.Getenv(env)
	if path == "" {
		missing(t, "%s is not set; 'make test' sets it, and builds what it names", env)
	}
	return File(t, path)
}

func missing(t testing.TB, format string, args ...any) {
	t.Helper()
	if os.Getenv(requireEnv) == "1" {
		t.Fatalf(format, args...)
	}
	t.Skipf("SKIPPED: "+format, args...)
}
