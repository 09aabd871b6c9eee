package config

import (
	"fmt"
	"path"
)

// crossCheck checks what documents have to do with each other.
func crossCheck(docs []document) {
	crossLinks(docs)
	crossServices(docs)
	crossFiles(docs)
	crossPods(docs)
}

func crossServices(docs []document) {
	next := map[string][]string{}
	ports := map[string]string{} // by protocol and number, who has them
	for _, d := range docs {
		switch v := d.value.(type) {
		case *API:
			ports[fmt.Sprint(TCP, v.Port)] = "the API"
		case *Service:
			next[v.Name] = v.WaitFor.Services
		}
	}
	for _, d := range docs {
		s, ok := d.value.(*Service)
		if !ok {
			continue
		}
		for i, p := range s.Ports {
			key := fmt.Sprint(p.Protocol, p.Host)
			if other, ok := ports[key]; ok {
				d.Add(item("ports", i)+".host", "%d/%s is %s's already", p.Host, p.Protocol, other)
				continue
			}
			ports[key] = "service " + s.Name
		}
	}
	for _, d := range docs {
		if s, ok := d.value.(*Service); ok {
			if chain := cycle(s.Name, func(name string) []string { return next[name] }); chain != "" {
				d.Add("waitFor.services", "the service waits for itself: %s", chain)
				return
			}
		}
	}
}

// crossFiles reports files in the place of other files' directories.
func crossFiles(docs []document) {
	files := map[string]bool{}
	for _, d := range docs {
		if f, ok := d.value.(*File); ok {
			files[f.Path] = true
		}
	}
	for _, d := range docs {
		f, ok := d.value.(*File)
		if !ok || !path.IsAbs(f.Path) {
			continue
		}
		for dir := path.Dir(f.Path); dir != "/"; dir = path.Dir(dir) {
			if files[dir] {
				d.Add("path", "%q is below %q, which is a File itself", f.Path, dir)
			}
		}
	}
}

func crossPods(docs []document) {
	kubelet := false
	for _, d := range docs {
		_, ok := d.value.(*Kubelet)
		kubelet = kubelet || ok
	}
	first := map[[2]string]string{}
	for _, d := range docs {
		if _, ok := d.value.(*ControlPlane); ok && !kubelet {
			d.Add("kind", "a control plane without a Kubelet document, want one")
		}
		p, ok := d.value.(*StaticPod)
		if !ok {
			continue
		}
		if !kubelet {
			d.Add("name", "a static pod without a Kubelet document, want one")
		}
		namespace, name := p.PodName()
		if other, ok := first[[2]string{namespace, name}]; ok {
			d.Add("pod.metadata.name", "pod %s/%s is that of %s already", namespace, name, other)
		}
		first[[2]string{namespace, name}] = p.Name
	}
}
