package imagename

import "testing"

func TestWhole(t *testing.T) {
	const digest = "@sha256:ed7002b439e9ac845f22357d822bac1444730fbdb6016d3ec9432297b9ec9f73"
	hub, _ := Default()
	for image, want := range map[string]string{
		"nginx":                        hub + "/library/nginx:latest",
		"nginx:1.29":                   hub + "/library/nginx:1.29",
		"a/b":                          hub + "/a/b:latest",
		hub + "/nginx":                 hub + "/library/nginx:latest",
		"index." + hub + "/a/b:c":      hub + "/a/b:c",
		"x" + digest:                   hub + "/library/x" + digest,
		"example.com/x:1" + digest:     "example.com/x" + digest,
		"localhost:5000/x":             "localhost:5000/x:latest",
		"index.example.com/x:1":        "index.example.com/x:1",
		"registry.example.com/pause:3": "registry.example.com/pause:3",
	} {
		if got, err := Whole(image); err != nil || got != want {
			t.Errorf("%s: %q, %v; want %q", image, got, err, want)
		}
	}
	if _, err := Whole("A b"); err == nil {
		t.Error("no error for a name that is none")
	}
}
