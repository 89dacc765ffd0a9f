import java.io.File;
import java.io.IOException;
import java.io.InputStream;
import java.net.MalformedURLException;
import java.net.URL;
import java.net.URLClassLoader;
import java.util.Enumeration;

/**
 * Loads classes from jars that nobody sees. Beam's job server uploads all that it was started from with every job, 160
 * MB and 13 seconds, to a cluster that has it already.
 *
 * <p>For {@code -Djava.system.class.loader=HiddenJars}, as Flink reads what its REST interface answers with the classes
 * of the system's class loader. The jars are in the property {@code jars}.
 */
public final class HiddenJars extends ClassLoader {
  private final URLClassLoader source;

  public HiddenJars(ClassLoader parent) throws MalformedURLException {
    super(parent);
    String[] jars = System.getProperty("jars").split(File.pathSeparator);
    URL[] urls = new URL[jars.length];
    for (int at = 0; at < jars.length; at++) {
      urls[at] = new File(jars[at]).toURI().toURL();
    }
    source = new URLClassLoader(urls, null);
  }

  @Override
  protected Class<?> findClass(String name) throws ClassNotFoundException {
    try (InputStream code = source.getResourceAsStream(name.replace('.', '/') + ".class")) {
      if (code == null) {
        throw new ClassNotFoundException(name);
      }
      byte[] bytes = code.readAllBytes();
      return defineClass(name, bytes, 0, bytes.length);
    } catch (IOException error) {
      throw new ClassNotFoundException(name, error);
    }
  }

  @Override
  protected URL findResource(String name) {
    return source.findResource(name);
  }

  @Override
  protected Enumeration<URL> findResources(String name) throws IOException {
    return source.findResources(name);
  }
}
