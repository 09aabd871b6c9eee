package imagename

import "testing"

func TestWhole(t *testing.T) {
	const digest = "@sha256:ed7002b439e9ac845f22357d822bac1444730fbdb6016d3ec9432297b9ec9f73"
	for image, want := range map[string]string{
		"nginx":                        "docker.io/library/nginx:latest",
		"nginx:1.29":                   "docker.io/library/nginx:1.29",
		"a/b":                          "docker.io/a/b:latest",
		"docker.io/nginx":              "docker.io/library/nginx:latest",
		"index.docker.io/a/b:c":        "docker.io/a/b:c",
		"x" + digest:                   "docker.io/library/x" + digest,
		"example.com/x:1" + digest:     "example.com/x" + digest,
		"localhost:5000/x":             "localhost:5000/x:latest",
		"index.example.com/x:1":        "index.example.com/x:1",
		"registry.k8s.io/pause:3.10.2": "registry.k8s.io/pause:3.10.2",
	} {
		if got, err := Whole(image); err != nil || got != want {
			t.Errorf("%s: %q, %v; want %q", image, got, err, want)
		}
	}
	if _, err := Whole("A b"); err == nil {
		t.Error("no error for a name that is none")
	}
}
