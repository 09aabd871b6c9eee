package gate_test

import (
	"bytes"
	"os/exec"
	"testing"

	"github.com/kilnhq/kiln/internal/oracle"
)

// compress runs a compressor that is not ours.
func compress(t *testing.T, data []byte, program string, args ...string) []byte {
	t.Helper()
	cmd := exec.Command(oracle.Tool(t, program), append(args, "-c")...)
	cmd.Stdin = bytes.NewReader(data)
	out, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	return out
}
