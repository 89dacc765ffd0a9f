import java.io.IOException;
import java.io.InputStream;
import java.net.URL;
import java.net.URLClassLoader;
import java.nio.file.Path;
import java.util.Arrays;
import java.util.Enumeration;

/**
 * Beam's job server, from jars that it does not see: else it uploads all it was started from with every job, 160 MB and
 * 13 seconds, to a cluster that has them already.
 */
public final class JobServer extends ClassLoader {
  private final URLClassLoader source;

  private JobServer(URLClassLoader source) {
    super(ClassLoader.getPlatformClassLoader());
    this.source = source;
  }

  public static void main(String[] arguments) throws Exception {
    String[] jars = arguments[0].split(java.io.File.pathSeparator);
    URL[] urls = new URL[jars.length];
    for (int at = 0; at < jars.length; at++) {
      urls[at] = Path.of(jars[at]).toUri().toURL();
    }
    ClassLoader loader = new JobServer(new URLClassLoader(urls, null));
    Thread.currentThread().setContextClassLoader(loader);
    loader
        .loadClass("org.apache.beam.runners.flink.FlinkJobServerDriver")
        .getMethod("main", String[].class)
        .invoke(null, (Object) Arrays.copyOfRange(arguments, 1, arguments.length));
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
