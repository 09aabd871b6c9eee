package v1alpha1

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protodesc"
	"google.golang.org/protobuf/reflect/protoregistry"
	"google.golang.org/protobuf/types/descriptorpb"

	"github.com/kilnhq/kiln/internal/oracle"
)

// The Go files are those that 'make generate' makes from the definitions.
func TestGenerated(t *testing.T) {
	dir := t.TempDir()
	here, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(filepath.Join(dir, "kiln"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(here, filepath.Join(dir, "kiln", "v1alpha1")); err != nil {
		t.Fatal(err)
	}
	files, err := filepath.Glob(filepath.Join(dir, "kiln", "v1alpha1", "*.proto"))
	if err != nil || len(files) == 0 {
		t.Fatal(files, err)
	}
	set := filepath.Join(dir, "set")
	out, err := exec.Command(oracle.Tool(t, "protoc"), append([]string{"-I", dir, "--descriptor_set_out=" + set}, files...)...).CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	data, err := os.ReadFile(set)
	if err != nil {
		t.Fatal(err)
	}
	var want descriptorpb.FileDescriptorSet
	if err := proto.Unmarshal(data, &want); err != nil {
		t.Fatal(err)
	}
	if len(want.File) != len(files) {
		t.Fatalf("%d descriptors of %d files", len(want.File), len(files))
	}
	for _, w := range want.File {
		got, err := protoregistry.GlobalFiles.FindFileByPath(w.GetName())
		if err != nil || !proto.Equal(protodesc.ToFileDescriptorProto(got), w) {
			t.Errorf("the Go file of %s is not made from it: run 'make generate' (%v)", w.GetName(), err)
		}
	}
}
